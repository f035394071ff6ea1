"""Some twenty families of small tasks with right answers, for the demo corpus.

A family draws an ``Item``: what is asked, told apart from how it is worded. The wordings of one
item share its answer, so a second wording is a near duplicate that no comparison of strings finds.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random


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


@dataclass(frozen=True, slots=True)
class Item:
    """One task: several wordings of the prompt, one right answer."""

    family: str
    prompts: tuple[str, ...]
    answer: str


Draw = Callable[[Random], tuple[tuple[str, ...], str]]


def _fill(wordings: tuple[str, ...], **slots: object) -> tuple[str, ...]:
    return tuple(wording.format(**slots) for wording in wordings)


def _arithmetic(rng: Random) -> tuple[tuple[str, ...], str]:
    a, b = rng.randint(12, 99), rng.randint(3, 60)
    sign, word, result = rng.choice(
        [("+", "plus", a + b), ("-", "minus", a - b), ("*", "times", a * b)]
    )
    wordings = ("What is {a} {sign} {b}?", "Calculate {a} {word} {b}.", "{a} {sign} {b} = ?")
    return _fill(wordings, a=a, b=b, sign=sign, word=word), str(result)


def _capital(rng: Random) -> tuple[tuple[str, ...], str]:
    country, capital = rng.choice(CAPITALS)
    wordings = (
        "What is the capital of {country}?",
        "Name the capital city of {country}.",
        "Which city is the capital of {country}?",
    )
    return _fill(wordings, country=country), capital


def _antonym(rng: Random) -> tuple[tuple[str, ...], str]:
    pair = rng.choice(ANTONYMS)
    word, opposite = pair if rng.random() < 0.5 else pair[::-1]
    wordings = (
        "Give the opposite of the word '{word}'.",
        "What is an antonym of '{word}'?",
        "Which word means the opposite of '{word}'?",
    )
    return _fill(wordings, word=word), opposite


def _sort_list(rng: Random) -> tuple[tuple[str, ...], str]:
    words = rng.sample(NOUNS, 4)
    wordings = (
        "Sort these words alphabetically: {words}.",
        "Put the following words in alphabetical order: {words}.",
        "Arrange in order from A to Z: {words}.",
    )
    return _fill(wordings, words=", ".join(words)), ", ".join(sorted(words))


def _unit(rng: Random) -> tuple[tuple[str, ...], str]:
    large, small, factor = rng.choice(UNITS)
    count = rng.randint(2, 15)
    wordings = (
        "Convert {count} {large} to {small}.",
        "How many {small} are there in {count} {large}?",
        "Express {count} {large} in {small}.",
    )
    return _fill(wordings, count=count, large=large, small=small), f"{count * factor} {small}"


def _sentiment(rng: Random) -> tuple[tuple[str, ...], str]:
    mood = rng.choice(sorted(MOODS))
    text = f"The {rng.choice(NOUNS)} was {rng.choice(MOODS[mood])} and {rng.choice(MOODS[mood])}."
    wordings = (
        "Is this review positive or negative? {text}",
        "Classify the sentiment as positive or negative: {text}",
        "Read the review and say whether it is positive or negative. Review: {text}",
    )
    return _fill(wordings, text=text), mood


def _date(rng: Random) -> tuple[tuple[str, ...], str]:
    day = datetime.date(1950, 1, 1) + datetime.timedelta(days=rng.randrange(25_000))
    written = f"{day.day} {day:%B} {day.year}"
    wordings = (
        "Write the date {written} in the form YYYY-MM-DD.",
        "Format '{written}' as an ISO 8601 date.",
        "What is {written} as YYYY-MM-DD?",
    )
    return _fill(wordings, written=written), day.isoformat()


def _extract_json(rng: Random) -> tuple[tuple[str, ...], str]:
    name, age, city = rng.choice(FIRST_NAMES), rng.randint(18, 80), rng.choice(CAPITALS)[1]
    text = f"{name} is {age} years old and lives in {city}."
    wordings = (
        "Extract name, age and city as JSON: {text}",
        "Return a JSON object with the keys name, age and city for this sentence: {text}",
        "Turn the sentence into JSON (name, age, city). {text}",
    )
    return _fill(wordings, text=text), json.dumps({"name": name, "age": age, "city": city})


def _plural(rng: Random) -> tuple[tuple[str, ...], str]:
    one, many = rng.choice(PLURALS)
    wordings = (
        "What is the plural of '{one}'?",
        "Write the plural form of the noun '{one}'.",
        "One {one}, two ...? Complete with one word.",
    )
    return _fill(wordings, one=one), many


def _french(rng: Random) -> tuple[tuple[str, ...], str]:
    english, french = rng.choice(FRENCH)
    wordings = (
        "Translate '{word}' into French.",
        "How do you say '{word}' in French?",
        "What is the French word for '{word}'?",
    )
    return _fill(wordings, word=english), french


def _spanish(rng: Random) -> tuple[tuple[str, ...], str]:
    english, spanish = rng.choice(SPANISH)
    wordings = (
        "Translate into Spanish: {word}",
        "Give the Spanish word for '{word}'.",
        "How would a Spanish speaker say '{word}'?",
    )
    return _fill(wordings, word=english), spanish


def _reverse(rng: Random) -> tuple[tuple[str, ...], str]:
    word = rng.choice(NOUNS)
    wordings = (
        "Reverse the string '{word}'.",
        "Write '{word}' backwards.",
        "Spell '{word}' from the last letter to the first.",
    )
    return _fill(wordings, word=word), word[::-1]


def _category(rng: Random) -> tuple[tuple[str, ...], str]:
    category = rng.choice(sorted(CATEGORIES))
    # Sorted, so that no item is another one in a different order.
    members = ", ".join(sorted(rng.sample(CATEGORIES[category], 3)))
    wordings = (
        "Name the category of these things: {members}.",
        "What do {members} have in common? Answer with one category.",
        "Which group do the following belong to: {members}?",
    )
    return _fill(wordings, members=members), category


def _compare(rng: Random) -> tuple[tuple[str, ...], str]:
    a, b = rng.sample(range(100, 10_000), 2)
    wordings = (
        "Which number is larger, {a} or {b}?",
        "Pick the greater of {a} and {b}.",
        "Compare {a} with {b} and give the larger one.",
    )
    return _fill(wordings, a=a, b=b), str(max(a, b))


def _logic(rng: Random) -> tuple[tuple[str, ...], str]:
    tall, middle, short = rng.sample(FIRST_NAMES, 3)
    facts = f"{tall} is taller than {middle}. {middle} is taller than {short}."
    first, second = rng.choice([(tall, short), (short, tall)])
    wordings = (
        "{facts} Is {first} taller than {second}? Answer yes or no.",
        "Given: {facts} Answer yes or no: {first} is taller than {second}.",
        "{facts} True that {first} is taller than {second}? Say yes or no.",
    )
    answer = "yes" if first == tall else "no"
    return _fill(wordings, facts=facts, first=first, second=second), answer


def _spelling(rng: Random) -> tuple[tuple[str, ...], str]:
    wrong, right = rng.choice(MISSPELT)
    wordings = (
        "Correct the spelling of '{wrong}'.",
        "The word '{wrong}' is misspelt. Write it correctly.",
        "Fix this spelling mistake: {wrong}",
    )
    return _fill(wordings, wrong=wrong), right


def _count_words(rng: Random) -> tuple[tuple[str, ...], str]:
    count = rng.randint(3, 8)
    text = " ".join(rng.sample(NOUNS, count))
    wordings = (
        "How many words are in this text? {text}",
        "Count the words: {text}",
        "Give the number of words in '{text}'.",
    )
    return _fill(wordings, text=text), str(count)


def _rhyme(rng: Random) -> tuple[tuple[str, ...], str]:
    right, word, *others = rng.choice(RHYMES)
    options = sorted([right, *others])
    wordings = (
        "Which of these words rhymes with '{word}': {options}?",
        "Pick the rhyme for '{word}' from {options}.",
        "Find the word that rhymes with '{word}' among {options}.",
    )
    return _fill(wordings, word=word, options=", ".join(options)), right


def _code_output(rng: Random) -> tuple[tuple[str, ...], str]:
    start, step, count = rng.randint(0, 9), rng.randint(2, 7), rng.randint(3, 5)
    values = [start + step * k for k in range(count)]
    code, result = rng.choice(
        [
            (f"print(sum({values}))", str(sum(values))),
            (f"print(len({values}))", str(len(values))),
            (f"print({values}[-1])", str(values[-1])),
        ]
    )
    wordings = (
        "What does this Python line print? {code}",
        "Give the output of the Python code: {code}",
        "Run in your head: {code} What is printed?",
    )
    return _fill(wordings, code=code), result


def _roman(rng: Random) -> tuple[tuple[str, ...], str]:
    number = rng.randint(4, 399)
    wordings = (
        "Write {number} in Roman numerals.",
        "What is the Roman numeral for {number}?",
        "Convert the number {number} to Roman numerals.",
    )
    return _fill(wordings, number=number), to_roman(number)


def to_roman(number: int) -> str:
    """Write a number from 1 to 3999 in Roman numerals."""
    numerals = {1000: "M", 900: "CM", 500: "D", 400: "CD", 100: "C", 90: "XC", 50: "L", 40: "XL"}
    numerals |= {10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I"}
    written = ""
    for value, letters in numerals.items():
        written += letters * (number // value)
        number %= value
    return written


def _order_events(rng: Random) -> tuple[tuple[str, ...], str]:
    (first, year), (second, other) = sorted(rng.sample(EVENTS, 2))
    wordings = (
        "Which happened first: {first} or {second}?",
        "What came earlier, {first} or {second}?",
        "Order in time. Which is the older event, {first} or {second}?",
    )
    return _fill(wordings, first=first, second=second), first if year < other else second


def _definition(rng: Random) -> tuple[tuple[str, ...], str]:
    word, meaning = rng.choice(DEFINITIONS)
    wordings = (
        "Define the word '{word}' in one sentence.",
        "What is {article} {word}?",
        "Explain briefly what {article} {word} is.",
    )
    article = "an" if word[0] in "aeiou" else "a"
    answer = f"{article.capitalize()} {word} is {meaning}."
    return _fill(wordings, word=word, article=article), answer


def _past_tense(rng: Random) -> tuple[tuple[str, ...], str]:
    verb, past = rng.choice(PAST_TENSES)
    name = rng.choice(FIRST_NAMES)
    wordings = (
        "Complete with the past tense of '{verb}': Yesterday {name} ...",
        "Yesterday {name} ... (to {verb}). Which past form belongs here?",
        "Put the verb '{verb}' into the past tense for {name}.",
    )
    return _fill(wordings, verb=verb, name=name), past


def _next_number(rng: Random) -> tuple[tuple[str, ...], str]:
    start, step = rng.randint(1, 40), rng.randint(2, 12)
    shown = ", ".join(str(start + step * k) for k in range(4))
    wordings = (
        "What number comes next: {shown}, ...?",
        "Continue the sequence {shown} with one number.",
        "Find the next term of {shown}.",
    )
    return _fill(wordings, shown=shown), str(start + 4 * step)


FAMILIES: dict[str, Draw] = {
    "antonyms": _antonym,
    "arithmetic": _arithmetic,
    "capitals": _capital,
    "categories": _category,
    "code output": _code_output,
    "comparison": _compare,
    "counting words": _count_words,
    "dates": _date,
    "definitions": _definition,
    "French": _french,
    "JSON extraction": _extract_json,
    "logic": _logic,
    "number sequences": _next_number,
    "ordering events": _order_events,
    "past tense": _past_tense,
    "plurals": _plural,
    "reversal": _reverse,
    "rhymes": _rhyme,
    "Roman numerals": _roman,
    "sentiment": _sentiment,
    "sorting": _sort_list,
    "Spanish": _spanish,
    "spelling": _spelling,
    "units": _unit,
}


def draw_item(family: str, rng: Random, families: Mapping[str, Draw] = FAMILIES) -> Item:
    """Draw one item of a family.

    Raises:
        KeyError: If there is no such family.
    """
    prompts, answer = families[family](rng)
    return Item(family, prompts, answer)


def draw_distinct_items(
    family: str, count: int, rng: Random, families: Mapping[str, Draw] = FAMILIES
) -> list[Item]:
    """Draw ``count`` items of a family, no two asking the same.

    Raises:
        ValueError: If the family's vocabulary is too small for that many.
    """
    items: dict[str, Item] = {}
    for _ in range(200 * count):
        item = draw_item(family, rng, families)
        items.setdefault(item.prompts[0], item)
        if len(items) == count:
            return list(items.values())
    raise ValueError(f"family {family!r} has only about {len(items)} items; asked for {count}")
