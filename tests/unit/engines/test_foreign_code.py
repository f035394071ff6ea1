"""Models from strangers: code that lies beside weights is never run, pickled weights never read."""

from __future__ import annotations

import ast
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import nncift_ray
from nncift_ray.errors import ModelError
from tests.tiny_models import make_tiny_llama

MODULE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "foreign"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {
    "AutoConfig": "foreign.Config",
    "AutoModelForCausalLM": "foreign.Model",
    "AutoTokenizer": ["foreign.Tokenizer", "foreign.Tokenizer"],
}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What appears once code beside the weights has been run."""
    return tmp_path / "owned"


@pytest.fixture
def model(tmp_path: Path, mark: Path) -> Path:
    """A tiny model that asks for classes of its own, as hub models with remote code do."""
    folder = make_tiny_llama(tmp_path / "model")
    (folder / "foreign.py").write_text(MODULE.format(mark=str(mark)))
    for name in ("config.json", "tokenizer_config.json"):
        tree = json.loads((folder / name).read_text()) | {"auto_map": AUTO_MAP}
        if name == "config.json":
            tree |= {"model_type": "foreign", "architectures": ["Model"]}
        else:
            tree |= {"tokenizer_class": "Tokenizer"}
        (folder / name).write_text(json.dumps(tree))
    return folder


def test_the_code_of_a_language_model_is_not_run(model: Path, mark: Path) -> None:
    import torch

    from nncift_ray.engines.memory import read_config
    from nncift_ray.engines.transformers import load_language_model

    with pytest.raises(ModelError):
        load_language_model(model, torch.device("cpu"), dtype="float32")
    with pytest.raises(ModelError):
        read_config(model)
    assert not mark.exists()


def test_the_trap_works(model: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(mark.parent / "modules"))
    AutoConfig.from_pretrained(str(model), trust_remote_code=True)
    assert mark.exists()


def test_the_code_of_a_tokenizer_is_not_run(model: Path, mark: Path) -> None:
    from nncift_ray.engines.tokens import SegmentTokenizer

    try:
        SegmentTokenizer(model)
    except ModelError:
        pass  # refused, or read as the plain tokenizer that its file holds
    assert not mark.exists()


def test_the_modules_of_an_embedder_are_not_run(tmp_path: Path, mark: Path) -> None:
    from nncift_ray.embedders import SentenceTransformerEmbedder

    folder = make_tiny_llama(tmp_path / "embedder")
    (folder / "foreign.py").write_text(MODULE.format(mark=str(mark)))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "foreign.Model"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError):
        SentenceTransformerEmbedder(folder, device="cpu")
    assert not mark.exists()


class Toucher:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_pickled_weights_are_not_read(tmp_path: Path, mark: Path) -> None:
    import torch

    from nncift_ray.engines.transformers import load_language_model

    folder = make_tiny_llama(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Toucher(mark)}))
    with pytest.raises(ModelError):
        load_language_model(folder, torch.device("cpu"), dtype="float32")
    assert not mark.exists()


def calls_in_the_package() -> list[tuple[str, ast.Call]]:
    root = Path(nncift_ray.__file__).parent
    return [
        (f"{path.relative_to(root)}:{node.lineno}", node)
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


#: Loaders that run code of a model's author when they are asked to.
LOADER = re.compile(r"Auto\w+\.from_\w+|SentenceTransformer")
#: What runs code that it is handed as data.
FORBIDDEN = {"torch.load", "pickle.load", "pickle.loads", "cloudpickle.loads", "joblib.load",
             "eval", "exec", "os.system", "marshal.loads", "yaml.load", "yaml.unsafe_load",
             "dill.loads", "torch.hub.load"}  # fmt: skip


def test_no_loader_of_the_package_may_run_foreign_code() -> None:
    calls = calls_in_the_package()
    loaders = [(place, call) for place, call in calls if LOADER.fullmatch(name_of(call))]
    told = {
        place: ast.unparse(word.value)
        for place, call in calls
        for word in call.keywords
        if word.arg == "trust_remote_code"
    }
    assert [place for place, _ in loaders if place not in told] == []
    assert set(told.values()) == {"False"}


def test_nothing_in_the_package_unpickles_or_evaluates() -> None:
    guilty = [place for place, call in calls_in_the_package() if name_of(call) in FORBIDDEN]
    assert guilty == []
    arrays = [
        (place, call) for place, call in calls_in_the_package()
        if any(word.arg == "allow_pickle" for word in call.keywords)
    ]  # fmt: skip
    assert arrays == []
