"""Which of a person's own code a finished run depends on: what the training names, and what that names in turn."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from test_transfer_calling import runs

from xferkit.transfer.identity import function_conditions

Load = Callable[..., ModuleType]

MODULES = ("job", "helper", "other", "pack", "bare")
TRAIN = "def train(tasks, seed):\n    return dict.fromkeys(tasks, {})\n"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Writes files and imports ``job`` (or another) anew, as a new process would."""
    folder = tmp_path / "src"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget() -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] in MODULES]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def loaded(files: dict[str, str], name: str = "job") -> ModuleType:
        for path, text in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(textwrap.dedent(text))
        forget()
        return importlib.import_module(name)

    yield loaded
    forget()


def conditions(train: Callable[..., object]) -> dict[str, str]:
    return function_conditions(train, None)


def parts(train: Callable[..., object]) -> dict[str, str]:
    found: dict[str, str] = json.loads(conditions(train)["code"])
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def job(before: str, value: str = "score()") -> str:
    return textwrap.dedent(before) + TRAIN.format(value)


# What changes in a file, and the name under which it is told.
CHANGES: dict[str, tuple[dict[str, str], tuple[str, str], str]] = {
    "helper function": ({"job.py": job("def score(): return 0.1\n")}, ("0.1", "0.2"), "job.score"),
    "helper of a helper": (
        {"job.py": job("def inner(): return 0.1\ndef score(): return inner()\n")}, ("0.1", "0.2"), "job.inner",
    ),
    "constant": ({"job.py": job("D = '/data/v1'\n", "len(D)")}, ("v1", "v2"), "job.D"),
    "constant of a helper": ({"job.py": job("D = 1\ndef score(): return D\n")}, ("D = 1", "D = 2"), "job.D"),
    "path": ({"job.py": job("from pathlib import Path\nD = Path('v1')\n", "len(D.name)")}, ("v1", "v2"), "job.D"),
    "tuple": ({"job.py": job("D = (1, ('a', None), b'v1')\n", "len(D)")}, ("v1", "v2"), "job.D"),
    "set": ({"job.py": job("D = frozenset({1, 2})\n", "len(D)")}, ("2}", "3}"), "job.D"),
    "number of numpy": ({"job.py": job("import numpy\nD = numpy.float32(1)\n", "float(D)")}, ("(1)", "(2)"), "job.D"),
    "member of an enum": (
        {"job.py": job("import enum\nclass E(enum.Enum):\n A = 1\n B = 2\nD = E.A\n", "D.value")},
        ("D = E.A", "D = E.B"), "job.D",
    ),
    "frozen dataclass": (
        {"job.py": job(
            "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass C:\n lr: float\nD = C(0.1)\n", "D.lr"
        )},
        ("0.1", "0.2"), "job.D",
    ),
    "named tuple": (
        {"job.py": job("from typing import NamedTuple\nclass C(NamedTuple):\n lr: float\nD = C(0.1)\n", "D.lr")},
        ("0.1", "0.2"), "job.D",
    ),
    "imported constant": (
        {"job.py": job("from helper import D\n", "D"), "helper.py": "D = 0.1\n"}, ("0.1", "0.2"), "job.D",
    ),
    "constant of an imported module": (
        {"job.py": job("import helper as h\n", "h.D"), "helper.py": "D = 0.1\n"}, ("0.1", "0.2"), "helper.D",
    ),
    "imported function": (
        {"job.py": job("from helper import score\n"), "helper.py": "def score(): return 0.1\n"},
        ("0.1", "0.2"), "helper.score",
    ),
    "constant behind an imported module": (
        {"job.py": job("import helper\n", "helper.score()"), "helper.py": "D = 0.1\ndef score(): return D\n"},
        ("0.1", "0.2"), "helper.D",
    ),
    "module of a package": (
        {"job.py": job("import pack.helper\n", "pack.helper.score()"), "pack/__init__.py": "",
         "pack/helper.py": "def score(): return 0.1\n"},
        ("0.1", "0.2"), "pack.helper.score",
    ),
    "module of a package without its file": (
        {"job.py": job("import bare.helper\n", "bare.helper.D"), "bare/helper.py": "D = 0.1\n"},
        ("0.1", "0.2"), "bare.helper.D",
    ),
    "module as a whole": (
        {"job.py": job("import helper\n", "getattr(helper, 'D')"), "helper.py": "D = 0.1\n"}, ("0.1", "0.2"), "helper",
    ),
    "what a module makes when asked": (
        {"job.py": job("import helper\n", "helper.D"), "helper.py": "def __getattr__(name): return 0.1\n"},
        ("0.1", "0.2"), "helper",
    ),
    "import inside": (
        {"job.py": "def train(tasks, seed):\n    from helper import D\n    return dict.fromkeys(tasks, D)\n",
         "helper.py": "D = 0.1\n"},
        ("0.1", "0.2"), "helper",
    ),
    "import behind an import inside": (
        {"job.py": "def train(tasks, seed):\n    import helper\n    return dict.fromkeys(tasks, helper.D)\n",
         "helper.py": "from other import D\n", "other.py": "D = 0.1\n"},
        ("0.1", "0.2"), "other",
    ),
    "relative import inside": (
        {"pack/__init__.py": "", "pack/helper.py": "D = 0.1\n",
         "pack/job.py": "def train(tasks, seed):\n from . import helper\n return dict.fromkeys(tasks, helper.D)\n"},
        ("0.1", "0.2"), "pack.helper",
    ),
    "method of a class": (
        {"job.py": job("class Net:\n    def score(self): return 0.1\n", "Net().score()")}, ("0.1", "0.2"), "job.Net",
    ),
    "constant that a method names": (
        {"job.py": job("D = 0.1\nclass Net:\n    @property\n    def score(self): return D\n", "Net().score")},
        ("0.1", "0.2"), "job.D",
    ),
    "base class": (
        {"job.py": job("class Base:\n    def score(self): return 0.1\nclass Net(Base): pass\n", "Net().score()")},
        ("0.1", "0.2"), "job.Base",
    ),
    "attribute of a class": (
        {"job.py": job("class C:\n    lr = 0\nC.lr = 0.1\n", "C.lr")}, ("C.lr = 0.1", "C.lr = 0.2"), "job.C.lr",
    ),
    "class of an object": (
        {"job.py": job("class Net:\n    def score(self): return 0.1\nnet = Net()\n", "net.score()")},
        ("0.1", "0.2"), "job.Net",
    ),
    "function in a dictionary": (
        {"job.py": job("def small(): return 0.1\nMODELS = {'small': small}\n", "MODELS['small']()")},
        ("0.1", "0.2"), "job.small",
    ),
    "bound argument": (
        {"job.py": job("import functools\ndef f(x): return x\nscore = functools.partial(f, 0.1)\n")},
        ("0.1", "0.2"), "job.score",
    ),
    "function behind a partial": (
        {"job.py": job("import functools\ndef f(x): return x * 0.1\nscore = functools.partial(f, 1)\n")},
        ("0.1", "0.2"), "job.f",
    ),
    "cached function": (
        {"job.py": job("import functools\n@functools.cache\ndef score(): return 0.1\n")}, ("0.1", "0.2"), "job.score",
    ),
    "function in a wrapper of a library": (
        {"job.py": job("import contextlib\n@contextlib.contextmanager\ndef score(): yield 0.1\n", "score")},
        ("0.1", "0.2"), "job.score",
    ),
    "lambda": ({"job.py": job("score = lambda: 0.1\n")}, ("0.1", "0.2"), "job.<lambda>"),
    "default": ({"job.py": job("def score(rate=0.1): return rate\n")}, ("0.1", "0.2"), "job.score"),
    "value in a closure": (
        {"job.py": job("def make(rate):\n    def inner(): return rate\n    return inner\nscore = make(0.1)\n")},
        ("0.1", "0.2"), "job.make.<locals>.inner",
    ),
    "class of a library": (
        {"job.py": job("from fractions import Fraction as Model\n", "Model")},
        ("fractions import Fraction", "decimal import Decimal"), "job.Model",
    ),
    "class of scikit-learn": (
        {"job.py": job("from sklearn.svm import SVC as Model\n", "Model")},
        ("svm import SVC", "linear_model import LogisticRegression"), "job.Model",
    ),
    "class behind a module of a library": (
        {"job.py": job("import torch\nOPT = torch.optim.SGD\n", "OPT")}, ("SGD", "Adam"), "job.OPT",
    ),
    "object of a library": (
        {"job.py": job("import torch\nloss = torch.nn.MSELoss()\n", "loss")}, ("MSELoss", "L1Loss"), "job.loss",
    ),
    "module of a library": (
        {"job.py": job("import math as xp\n", "xp.sqrt(1)")}, ("import math", "import cmath"), "job.xp",
    ),
    "ufunc": ({"job.py": job("import numpy as np\nact = np.tanh\n", "act")}, ("tanh", "sin"), "job.act"),
    "function of numpy": ({"job.py": job("import numpy as np\nf = np.mean\n", "f")}, ("mean", "median"), "job.f"),
    "builtin": ({"job.py": job("f = max\n", "f")}, ("max", "min"), "job.f"),
    "method of a builtin class": ({"job.py": job("f = str.lower\n", "f")}, ("lower", "upper"), "job.f"),
    "function of torch": (
        {"job.py": job("import torch\nf = torch.relu\n", "f")}, ("torch.relu", "torch.tanh"), "job.f",
    ),
    "dtype": ({"job.py": job("import torch\nD = torch.float32\n", "D")}, ("float32", "bfloat16"), "job.D"),
    "device": ({"job.py": job("import torch\nD = torch.device('cpu')\n", "D")}, ("cpu", "meta"), "job.D"),
    "dtype of numpy": ({"job.py": job("import numpy\nD = numpy.dtype('f4')\n", "D")}, ("f4", "f8"), "job.D"),
    "date": (
        {"job.py": job("import datetime\nD = datetime.date(2020, 1, 1)\n", "D.year")}, ("2020", "2021"), "job.D",
    ),
    "pattern": (
        {"job.py": job("import re\nD = re.compile('a' * 300 + '!')\n", "len(D.pattern)")}, ("!", "?"), "job.D",
    ),
    "class in a partial": (
        {"job.py": job("import functools\nfrom torch.optim import SGD, Adam\n"
                       "opt = functools.partial(SGD, lr=1)\n", "opt")},
        ("(SGD,", "(Adam,"), "job.opt",
    ),
    "own function under another name": (
        {"job.py": job("def a(): return 1\ndef b(): return 2\nF = a\n", "a() + b() + F()")},
        ("F = a", "F = b"), "job.F",
    ),
    "own module under another name": (
        {"job.py": job("import helper, other\nimport helper as h\n", "helper.D + other.D + h.D"),
         "helper.py": "D = 1\n", "other.py": "D = 2\n"},
        ("import helper as h", "import other as h"), "job.h",
    ),
    "number beside a dtype": (
        {"job.py": job(
            "from dataclasses import dataclass\nimport torch\n@dataclass(frozen=True)\nclass C:\n"
            " lr: float\n dtype: torch.dtype\nD = C(lr=0.1, dtype=torch.float32)\n", "D.lr"
        )},
        ("lr=0.1", "lr=0.9"), "job.D",
    ),
    "number beside a class": (
        {"job.py": job("import torch\nD = (0.1, torch.nn.ReLU)\n", "D[0]")}, ("0.1", "0.9"), "job.D",
    ),
    "number beside a list": ({"job.py": job("D = (0.1, [])\n", "D[0]")}, ("0.1", "0.9"), "job.D"),
    "class in a tuple": (
        {"job.py": job("import torch\nD = (0.1, torch.nn.ReLU)\n", "D[0]")}, ("ReLU", "GELU"), "job.D",
    ),
    "class as a default": (
        {"job.py": job("import torch\ndef h(o=torch.optim.SGD): return o\n", "h()")}, ("SGD", "Adam"), "job.h",
    ),
    "list as a default": (
        {"job.py": job("def h(sizes=[64]): return sizes[0]\n", "h()")}, ("64", "128"), "job.h",
    ),
    "dictionary as a default": (
        {"job.py": job("def h(*, rates={'a': {1, 2}}): return len(rates)\n", "h()")}, ("2}", "3}"), "job.h",
    ),
    "name inside a function inside": (
        {"job.py": job("D = 0.1\ndef score(): return [(lambda: D)() for _ in range(2)][0]\n")}, ("0.1", "0.2"), "job.D",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_the_training_names_makes_other_runs(name, load, tmp_path) -> None:
    files, (old, new), told = CHANGES[name]
    for library in ("sklearn", "torch"):
        if library in "".join(files.values()):
            pytest.importorskip(library)
    assert sum(text.count(old) for text in files.values()) == 1
    module = "pack.job" if "pack/job.py" in files else "job"
    before = conditions(load(files, module).train)
    train = load(files, module).train
    assert conditions(train) == before, "equal when loaded anew"
    train(("a",), 1)
    assert conditions(train) == before, "and after it ran"
    after = conditions(load({path: text.replace(old, new) for path, text in files.items()}, module).train)
    names = changed(json.loads(before["code"]), json.loads(after["code"]))
    assert names and names[0] == told and all(name.startswith(told) for name in names)


def test_names_that_lead_in_circles_end(load) -> None:
    text = """
    def score(n=2): return 0.1 if n == 0 else other(n - 1)
    def other(n): return Net().run(n)
    class Net:
        def run(self, n): return score(n) if n >= 0 else Net
    """
    found = parts(load({"job.py": job(text)}).train)
    assert {"job.train", "job.score", "job.other", "job.Net", "job.Net.run"} == set(found)


def test_libraries_are_not_followed(load) -> None:
    text = """
    import json, statistics
    import numpy as np, torch
    from xferkit.transfer import Run
    from dataclasses import dataclass
    class Net(torch.nn.Module): pass
    def score(): return np.mean([1.0]) + statistics.mean([1]) + len(json.dumps(1)) + (Run is dataclass)
    """
    found = parts(load({"job.py": job(text, "score() + (Net is None)")}).train)
    names = {"json", "statistics", "np", "Run", "dataclass"}  # bound to something of a library
    assert set(found) == {"job.train", "job.score", "job.Net"} | {f"job.{name}" for name in names}


def test_methods_and_objects_lead_on_too(load) -> None:
    text = "D = 0.1\nclass T:\n    def fit(self, tasks, seed): return dict.fromkeys(tasks, D)\n"
    text += "    def __call__(self, tasks, seed): return self.fit(tasks, seed)\n"

    def made(value: str) -> list[dict[str, str]]:
        trainer = load({"job.py": text.replace("0.1", value)}).T()
        return [parts(f) for f in (trainer, trainer.fit, functools.partial(trainer.fit))]

    for before, after in zip(made("0.1"), made("0.2"), strict=True):
        assert changed(before, after) == ["job.D"]


def test_what_runs_counts_and_not_what_a_file_says_by_now(load, tmp_path) -> None:
    """A file that was changed and not imported anew: its runs are neither those of the old nor of the new text."""
    files = {"job.py": job("from helper import score\n"), "helper.py": "def score(): return 0.1\n"}
    train = load(files).train
    before = parts(train)
    (tmp_path / "src/helper.py").write_text("def score(): return 0.2\n")
    assert parts(train) == before
    assert changed(before, parts(load({}).train)) == ["helper.score"]


def test_a_value_that_cannot_be_asked_is_passed_by(load) -> None:
    text = """
    class Proxy:
        @property
        def __class__(self): raise RuntimeError("nothing here yet")
    D = 0.1
    proxy = Proxy()
    def score(): return D if proxy is not None else proxy
    """
    assert {"job.D", "job.score"} <= set(parts(load({"job.py": job(text)}).train))


def test_diagnose_does_again_what_changed(load, tmp_path) -> None:
    files = {
        "job.py": job("import helper\n", "helper.score()"),
        "helper.py": "D = 0.1\ndef score(): return D\n",
    }
    out = tmp_path / "out"
    assert runs(out, load(files).train) == 2 and runs(out, load(files).train) == 0
    assert runs(out, load({"helper.py": files["helper.py"].replace("0.1", "0.2")}).train) == 2
    assert runs(out, load(files).train) == 0, "the old ones are still there"


SCRIPT = """
from xferkit.transfer import diagnose

D = {d!r}

def load(): return D

def train(tasks, seed):
    return {{task: len(load()) / 100 + 0.01 * seed for task in tasks}}

answer = diagnose(train, ["a", "b"], {seeds}, target="a", out={out!r})
print(*(note for note in answer.notes if "of earlier calls" in note), sep="\\n")
"""


@pytest.mark.slow
def test_a_script_sees_its_own_constants(tmp_path) -> None:
    def said(d: str, seeds: int) -> str:
        (tmp_path / "script.py").write_text(SCRIPT.format(d=d, seeds=seeds, out=str(tmp_path / "out")))
        words = [sys.executable, "script.py"]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    assert said("/data/v1", 1) == ""
    assert said("/data/v1", 2).startswith(
        "2 of 4 runs are of earlier calls; what the training reads from files,"
    )
    assert said("/data/v2", 2).endswith("are not used, since what decides the result has changed: D.")


def test_an_import_that_is_none_is_passed_by(load) -> None:
    text = """
    def score():
        try:
            import no_such_module
            from ....too.far import away
        except ImportError:
            return 0.1
    """
    with contextlib.suppress(ImportError):
        assert set(parts(load({"job.py": job(text)}).train)) == {"job.train", "job.score"}
