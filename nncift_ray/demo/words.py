"""The small closed vocabularies that the demo's task families draw from."""

from __future__ import annotations


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read ``left=right`` entries separated by semicolons."""
    entries = [entry.strip().split("=") for entry in text.split(";") if entry.strip()]
    return tuple((left.strip(), right.strip()) for left, right in entries)


CAPITALS = _pairs("""
    France=Paris; Spain=Madrid; Italy=Rome; Germany=Berlin; Portugal=Lisbon; Greece=Athens;
    Norway=Oslo; Sweden=Stockholm; Finland=Helsinki; Denmark=Copenhagen; Poland=Warsaw;
    Austria=Vienna; Hungary=Budapest; Ireland=Dublin; Belgium=Brussels; Romania=Bucharest;
    Bulgaria=Sofia; Croatia=Zagreb; Serbia=Belgrade; Iceland=Reykjavik; Japan=Tokyo; China=Beijing;
    India=New Delhi; Thailand=Bangkok; Vietnam=Hanoi; Indonesia=Jakarta; Nepal=Kathmandu;
    Egypt=Cairo; Kenya=Nairobi; Ghana=Accra; Senegal=Dakar; Morocco=Rabat; Canada=Ottawa;
    Mexico=Mexico City; Cuba=Havana; Peru=Lima; Chile=Santiago; Argentina=Buenos Aires;
    Brazil=Brasilia; Uruguay=Montevideo; Australia=Canberra; Turkey=Ankara; Iran=Tehran;
    Iraq=Baghdad; Jordan=Amman; Lebanon=Beirut; Mongolia=Ulaanbaatar; Cambodia=Phnom Penh
""")

ANTONYMS = _pairs("""
    hot=cold; big=small; fast=slow; early=late; light=dark; rich=poor; strong=weak; open=closed;
    empty=full; wet=dry; young=old; happy=sad; loud=quiet; soft=hard; thick=thin; wide=narrow;
    cheap=expensive; brave=cowardly; clean=dirty; deep=shallow; sweet=sour; sharp=blunt;
    true=false; first=last; ancient=modern; polite=rude; simple=complicated; generous=stingy
""")

NOUNS = tuple(
    """apple basket candle dragon engine feather garden hammer island jacket kettle lantern mirror
    needle orange pencil quilt rabbit saddle table umbrella violin window yogurt zebra bottle castle
    doctor forest guitar helmet ladder magnet notebook palace river spider tunnel village wagon
    bridge camera desert farmer harbor kitchen market ocean planet school train blanket""".split()
)

FIRST_NAMES = tuple(
    """Anna Boris Clara David Elena Felix Grace Hugo Irene Jonas Karin Louis Maria Nadia Oscar Paula
    Quentin Rosa Simon Teresa Ulrich Vera Walter Yusuf Zoe Amir Bianca Carlos Daria Emil""".split()
)

# Name of the larger unit, of the smaller one, and how many of the smaller make one larger.
UNITS = (
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("centimetres", "millimetres", 10),
    ("kilograms", "grams", 1000),
    ("tonnes", "kilograms", 1000),
    ("litres", "millilitres", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
)

MOODS = {
    "positive": tuple(
        """wonderful delightful superb charming excellent lovely brilliant reliable beautiful
        impressive perfect marvellous""".split()
    ),
    "negative": tuple(
        """terrible boring awful broken disappointing useless horrible ugly unreliable dull
        dreadful shoddy""".split()
    ),
}

PLURALS = _pairs("""
    child=children; mouse=mice; goose=geese; foot=feet; tooth=teeth; man=men; woman=women;
    person=people; ox=oxen; leaf=leaves; knife=knives; wolf=wolves; wife=wives; life=lives;
    shelf=shelves; loaf=loaves; thief=thieves; half=halves; city=cities; baby=babies;
    story=stories; lady=ladies; party=parties; country=countries; box=boxes; fox=foxes;
    church=churches; dish=dishes; bus=buses; class=classes; potato=potatoes; tomato=tomatoes;
    hero=heroes; echo=echoes; cactus=cacti; crisis=crises; analysis=analyses; key=keys; toy=toys;
    window=windows; berry=berries; calf=calves; watch=watches; brush=brushes
""")

FRENCH = _pairs("""
    house=maison; dog=chien; cat=chat; bread=pain; water=eau; milk=lait; cheese=fromage; book=livre;
    school=école; door=porte; window=fenêtre; table=table; chair=chaise; tree=arbre; flower=fleur;
    sun=soleil; moon=lune; star=étoile; sea=mer; river=fleuve; fire=feu; hand=main; head=tête;
    eye=œil; heart=cœur; friend=ami; mother=mère; father=père; brother=frère; sister=sœur;
    red=rouge;
    blue=bleu; green=vert; black=noir; white=blanc; horse=cheval; bird=oiseau; fish=poisson;
    apple=pomme; street=rue; city=ville; night=nuit; day=jour; snow=neige
""")

SPANISH = _pairs("""
    house=casa; dog=perro; cat=gato; bread=pan; water=agua; milk=leche; cheese=queso; book=libro;
    school=escuela; door=puerta; window=ventana; table=mesa; chair=silla; tree=árbol; flower=flor;
    sun=sol; moon=luna; star=estrella; sea=mar; river=río; fire=fuego; hand=mano; head=cabeza;
    eye=ojo; heart=corazón; friend=amigo; mother=madre; father=padre; brother=hermano;
    sister=hermana;
    red=rojo; blue=azul; green=verde; grey=gris; white=blanco; horse=caballo; bird=pájaro;
    fish=pez; apple=manzana; street=calle; city=ciudad; night=noche; day=día; snow=nieve
""")

CATEGORIES = {
    "fruits": ("apple", "banana", "cherry", "grape", "mango", "pear", "plum"),
    "vegetables": ("carrot", "spinach", "onion", "cabbage", "leek", "turnip", "celery"),
    "animals": ("tiger", "rabbit", "camel", "otter", "badger", "donkey", "moose"),
    "colours": ("red", "purple", "yellow", "green", "grey", "pink", "brown"),
    "tools": ("hammer", "saw", "wrench", "drill", "chisel", "pliers", "screwdriver"),
    "musical instruments": ("violin", "flute", "drum", "trumpet", "harp", "piano", "cello"),
    "vehicles": ("bus", "tram", "lorry", "bicycle", "train", "scooter", "van"),
    "metals": ("iron", "copper", "silver", "zinc", "gold", "tin", "nickel"),
}

MISSPELT = _pairs("""
    recieve=receive; seperate=separate; definately=definitely; occured=occurred; untill=until;
    wich=which; beleive=believe; freind=friend; adress=address; begining=beginning;
    calender=calendar; cemetary=cemetery; collegue=colleague; comming=coming; embarass=embarrass;
    enviroment=environment; existance=existence; foriegn=foreign; goverment=government;
    grammer=grammar; happend=happened; harrass=harass; immediatly=immediately;
    independant=independent; knowlege=knowledge; libary=library; lisence=licence;
    millenium=millennium; neccessary=necessary; noticable=noticeable; occassion=occasion;
    parliment=parliament; persue=pursue; posession=possession; publically=publicly;
    reccomend=recommend; religous=religious; remeber=remember; sieze=seize; suprise=surprise;
    tommorow=tomorrow; tounge=tongue; truely=truly; wierd=weird
""")

# The word that rhymes, the word asked about, two that do not rhyme with it.
RHYMES = tuple(
    tuple(line.split())
    for line in """
    light night bread stone | cake lake moon ship | ring king dust flower | tree bee hand cold
    boat coat lamp fish | star car milk green | rain train wolf soft | house mouse dark bell
    ball tall snow pink | book hook sand tower | day play drum fox | moon spoon gate hill
    hat cat door wind | sun run leaf cloud | pen hen rock glass | bell well horse trap
    box fox paint seed | bed red salt cheese | chair bear plum wood | cold gold stick farm
    dog log cup shirt | duck truck page silk | face place wheel mud | fire wire nest pond
    game name cork belt | goat note brick mist | green queen jump sock | hill mill voice branch
    horn corn bath lid | jump pump lace crow | land sand juice pipe | mice rice tent golf
    nose rose link bush | pie sky fern cart | pool school brand tick | rope hope sled jar
    seed need cloth pan | snail whale crust hop | soup loop yard fist | town crown pet smile
    """.replace("\n", "|").split("|")
    if line.strip()
)

EVENTS: tuple[tuple[str, int], ...] = (
    ("the fall of Rome", 476),
    ("the Norman conquest of England", 1066),
    ("the signing of Magna Carta", 1215),
    ("the invention of the printing press", 1450),
    ("Columbus's first voyage", 1492),
    ("the Great Fire of London", 1666),
    ("the French Revolution", 1789),
    ("the first steam railway", 1825),
    ("the opening of the Suez Canal", 1869),
    ("the first powered flight", 1903),
    ("the sinking of the Titanic", 1912),
    ("the discovery of penicillin", 1928),
    ("the first Moon landing", 1969),
    ("the fall of the Berlin Wall", 1989),
)

DEFINITIONS = _pairs("""
    library=a place where people borrow books; compass=a tool that shows where north is;
    glacier=a large mass of ice that moves slowly; bakery=a shop that makes and sells bread;
    island=land with water on all sides; volcano=a mountain that can throw out lava;
    orchard=a field where fruit trees grow; carpenter=a person who makes things of wood;
    telescope=an instrument for looking at distant things; desert=a dry region with few plants;
    harbour=a place where ships are safe; thermometer=a device that measures temperature;
    umbrella=a folding cover against the rain; sculptor=an artist who carves figures;
    museum=a building that shows valuable objects; pilot=a person who flies an aircraft;
    anchor=a heavy hook that holds a ship; blizzard=a storm with much snow;
    canal=a waterway made by people; drought=a long time without rain;
    eclipse=the hiding of one heavenly body by another; florist=a person who sells flowers;
    hive=a house for bees; inventor=a person who makes new devices;
    jury=a group that decides a trial;
    kennel=a shelter for a dog; ladder=a frame with steps for climbing;
    magnet=a thing that attracts iron; nurse=a person who cares for the sick;
    oasis=a place with water in a dry land; pharmacy=a shop that sells medicine;
    quarry=a pit where stone is cut; recipe=a list of steps for cooking;
    stable=a building for horses; tailor=a person who makes clothes;
    vineyard=a field where grapes grow; widow=a woman whose husband has died;
    zoo=a park where animals are shown; bridge=a structure that crosses a river;
    candle=a stick of wax that gives light; diary=a book for daily notes;
    engine=a machine that makes things move; orphan=a child without parents
""")

PAST_TENSES = _pairs("""
    go=went; see=saw; eat=ate; take=took; write=wrote; run=ran; buy=bought; bring=brought;
    think=thought; teach=taught; catch=caught; sing=sang; swim=swam; drink=drank; begin=began;
    break=broke; choose=chose; drive=drove; fall=fell; fly=flew; forget=forgot; give=gave;
    grow=grew;
    hear=heard; keep=kept; know=knew; leave=left; lose=lost; make=made; meet=met; pay=paid;
    ride=rode;
    sell=sold; sleep=slept; speak=spoke; stand=stood; steal=stole; tell=told; wear=wore; win=won
""")
