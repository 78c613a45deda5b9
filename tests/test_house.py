"""The rules of the house: who may import whom, which library has which room, and how large a room may grow.

Each rule is a table and a walk over the syntax trees. A new room needs its floor in FLOORS; a rule that has to be
broken needs a line in WAIVERS, with the reason.
"""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "oxlo_local"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# A room imports only from floors below its own; the files of one folder may see each other.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"__init__", "errors"}),
    frozenset(
        {
            "calls",
            "config",
            "ct2",
            "diffuser",
            "entry",
            "log",
            "gguf",
            "ids",
            "limits",
            "client",
            "migrations",
            "pepper",
            "wal",
            "random_model",
        }
    ),
    frozenset(
        {
            "metrics",
            "protocol",
            "catalogue",
            "hardware",
            "hub",
            "db",
            "stream_connection",
            "launch",
            "hearing",
            "drawing",
            "transcript",
            "mmproj",
            "random_diffuser",
            "random_eye",
            "random_whisper",
        }
    ),
    frozenset({"fit", "store", "allowance", "audit", "claims", "instance", "engines", "bench"}),
    frozenset({"keys", "ledger", "pull", "workers"}),
    frozenset({"statement", "verify", "replays", "uploads", "outputs", "inference", "lineup"}),
    frozenset({"compare", "api"}),
    frozenset({"server"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)

# Rooms that see less than their floor would allow.
SEES_ONLY: dict[str, frozenset[str]] = {
    "calls": frozenset(),
    "protocol": frozenset({"calls", "errors"}),
    "engines": frozenset({"calls", "errors", "log"}),  # loaded by name in the child, never by the parent
    "workers/router.py": frozenset({"calls", "errors"}),
    "workers/supervisor.py": frozenset({"calls", "errors", "log", "config"}),
    "fit": frozenset({"calls", "catalogue", "errors", "gguf", "hardware"}),
}

# Every foreign library has one room.
LIBRARY_ROOMS: dict[str, tuple[str, ...]] = {
    "diffusers": ("engines/image/loading.py", "random_diffuser.py"),
    "av": ("engines/speech/recording.py",),
    "ctranslate2": ("engines/speech/whisper.py", "random_whisper.py"),
    "faster_whisper": ("engines/speech/whisper.py", "engines/speech/voice.py", "random_whisper.py"),
    "gguf": ("random_model.py", "random_eye.py"),
    "httptools": ("stream_connection.py",),
    "filelock": ("hub.py",),
    "httpx": ("client.py",),
    "httpx2": ("hub.py",),
    "huggingface_hub": ("hub.py",),
    "jinja2": ("engines/text/prompt.py",),
    "llama_cpp": (
        "engines/weights.py",
        "engines/text/llama.py",
        "engines/text/eye.py",
        "engines/text/sampling.py",
        "engines/embedding/pooled.py",
    ),
    "llguidance": ("engines/text/grammar.py",),
    "PIL": ("engines/pictures.py", "engines/image/"),
    "numpy": (
        "engines/text/",
        "engines/embedding/",
        "engines/speech/",
        "random_model.py",
        "random_eye.py",
        "random_whisper.py",
    ),
    "platformdirs": ("config.py",),
    "prometheus_client": ("metrics.py",),
    "prompt_toolkit": ("cli/terminal.py",),
    "psutil": ("hardware.py",),
    "python_multipart": ("api/upload.py",),
    "rich": ("cli/",),
    "sqlite3": ("db.py", "wal.py"),
    "starlette": ("api/",),
    "subprocess": ("hardware.py", "launch.py"),
    "torch": ("engines/image/", "random_diffuser.py"),
    "tqdm": ("hub.py",),
    "transformers": ("engines/image/loading.py", "random_diffuser.py"),
    "typer": ("cli/",),
    "uvicorn": ("api/connections.py",),
}

# Decisions: facts in, a plan out. They look at no clock, file, process or log.
PURE = (
    "calls/",
    "errors.py",
    "fit.py",
    "protocol/",
    "workers/router.py",
    "engines/image/asking.py",
    "engines/speech/batch.py",
    "engines/speech/quality.py",
    "engines/speech/stretches.py",
    "engines/speech/timing.py",
    "engines/text/batcher.py",
    "engines/text/channels.py",
    "engines/text/conversation.py",
    "engines/text/forced.py",
    "engines/text/guess.py",
    "engines/text/output.py",
    "engines/text/prefix.py",
    "engines/text/runs.py",
    "engines/text/thinking.py",
    "engines/text/toolcalls/",
    "engines/turns.py",
)
IMPURE = frozenset(
    "asyncio ctypes logging os pathlib random secrets shutil signal socket subprocess tempfile threading time".split()
)

FILE_LINES, CLASS_LINES, FUNCTION_LINES, NESTING = 500, 400, 60, 4
FORBIDDEN_WORDS = re.compile(r"utils?|helpers?|common|misc|base|manager|handler|service|impl", re.IGNORECASE)

# What breaks a rule, and why it may.
WAIVERS: dict[str, str] = {}

# Modules whose test has another name: the file that holds them to account.
TESTED_BY: dict[str, str] = {
    "engines/speech/hearing.py": "engines/speech/test_engine.py",
    "engines/embedding/reading.py": "engines/embedding/test_engine.py",
    "engines/text/intake.py": "engines/text/test_engine.py",
    "engines/text/reading.py": "engines/text/test_engine.py",
    "engines/text/sequence.py": "engines/text/test_engine.py",
    **{
        f"engines/text/toolcalls/{name}.py": "engines/text/test_channels.py"
        for name in "command_r deepseek envelopes format gemma generic harmony mistral qwen3_coder tape".split()
    },
    **{
        f"engines/text/toolcalls/{name}.py": "engines/text/test_forced.py"
        for name in "gemma_notation llama3 shape values".split()
    },
}


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text("utf-8"))


def within(file: str, rooms: tuple[str, ...]) -> bool:
    return any(file == room or (room.endswith("/") and file.startswith(room)) for room in rooms)


def room_of(module: str) -> str:
    """`oxlo_local.engines.text` -> `engines`; the package itself -> `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def modules_of(node: ast.AST) -> list[str]:
    """What an import statement names; `from oxlo_local import x` names the room x where there is one."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom) or node.level:
        return []
    if node.module != "oxlo_local":
        return [node.module or ""]
    rooms = [
        alias.name for alias in node.names if f"{alias.name}.py" in FILES or (PACKAGE / alias.name).is_dir()
    ]
    return [f"oxlo_local.{room}" for room in rooms] or ["oxlo_local"]


def imports(file: str) -> Iterator[tuple[int, str]]:
    """Line and module of every import, those inside functions too."""
    for node in ast.walk(tree(file)):
        yield from ((getattr(node, "lineno", 0), module) for module in modules_of(node))


def report(faults: list[str]) -> None:
    broken = [fault for fault in faults if re.sub(r":\d+:", ":", fault, count=1) not in WAIVERS]
    assert not broken, "\n".join(["the house is broken:", *broken])


def test_every_room_has_one_floor() -> None:
    rooms = {file.split("/")[0].removesuffix(".py") for file in FILES}
    housed = [room for floor in FLOORS for room in floor]
    assert rooms <= set(housed) and len(housed) == len(set(housed))


def test_imports_point_down() -> None:
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    faults = []
    for file in FILES:
        own = file.split("/")[0].removesuffix(".py")
        for line, module in imports(file):
            room = room_of(module)
            if module.split(".")[0] == "oxlo_local" and room != own and floor_of[room] >= floor_of[own]:
                faults.append(f"{file}:{line}: {own} may not import {room}, which is no floor below")
    report(faults)


def test_some_rooms_see_less() -> None:
    faults = []
    for file in FILES:
        room = file.split("/")[0].removesuffix(".py")
        allowed = SEES_ONLY.get(file, SEES_ONLY.get(room))
        if allowed is None:
            continue
        for line, module in imports(file):
            seen = room_of(module)
            if module.split(".")[0] == "oxlo_local" and seen not in allowed | {room, "__init__"}:
                faults.append(f"{file}:{line}: sees {seen}; it may see only {', '.join(sorted(allowed))}")
    report(faults)


def test_only_the_child_touches_engines() -> None:
    faults = [
        f"{file}:{line}: imports {module}"
        for file in FILES
        for line, module in imports(file)
        if module.startswith("oxlo_local.engines") and not within(file, ("engines/", "workers/main.py"))
    ]
    report(faults)


def test_every_library_has_its_room() -> None:
    faults = [
        f"{file}:{line}: {module} belongs in {' or '.join(LIBRARY_ROOMS[module.split('.')[0]])}"
        for file in FILES
        for line, module in imports(file)
        if module.split(".")[0] in LIBRARY_ROOMS and not within(file, LIBRARY_ROOMS[module.split(".")[0]])
    ]
    report(faults)


def test_decisions_are_pure() -> None:
    faults = [
        f"{file}:{line}: a pure room imports {module}"
        for file in FILES
        for line, module in imports(file)
        if within(file, PURE) and module.split(".")[0] in IMPURE
    ]
    report(faults)


def test_imports_stand_at_the_top_except_in_commands() -> None:
    faults = [
        f"{file}:{inner.lineno}: an import inside {node.name}; only commands may put off a heavy room"
        for file in FILES
        if not file.startswith("cli/")
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    report(faults)


def depth(node: ast.AST) -> int:
    """How deeply control flow nests; an elif is no deeper than its if."""
    deepest = 0
    for name, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in children:
            if not isinstance(child, ast.AST) or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            is_elif = isinstance(node, ast.If) and name == "orelse" and isinstance(child, ast.If)
            nests = isinstance(
                child, ast.If | ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith | ast.Try
            )
            deepest = max(deepest, depth(child) + (nests and not is_elif))
    return deepest


def test_budgets() -> None:
    faults = []
    for file in FILES:
        lines = len((PACKAGE / file).read_text("utf-8").splitlines())
        if lines > FILE_LINES:
            faults.append(f"{file}: {lines} lines; two rooms would be clearer")
        for node in ast.walk(tree(file)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            limit = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            if length > limit:
                faults.append(f"{file}:{node.lineno}: {node.name} has {length} lines; the limit is {limit}")
            if not isinstance(node, ast.ClassDef) and depth(node) > NESTING:
                faults.append(
                    f"{file}:{node.lineno}: {node.name} nests {depth(node)} deep; the limit is {NESTING}"
                )
    report(faults)


def words(name: str) -> list[str]:
    """`KeyManager` -> Key, Manager; `test_utils` -> test, utils."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)


def test_names_say_what_a_thing_is() -> None:
    faults = [
        f"{file}: says nothing"
        for file in FILES
        if any(map(FORBIDDEN_WORDS.fullmatch, words(Path(file).stem)))
    ]
    faults += [
        f"{file}:{node.lineno}: class {node.name} says nothing"
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.ClassDef) and any(map(FORBIDDEN_WORDS.fullmatch, words(node.name)))
    ]
    report(faults)


def test_every_module_says_what_it_is_for() -> None:
    faults = []
    for file in FILES:
        first = (ast.get_docstring(tree(file)) or "").partition("\n")[0]
        if not 10 <= len(first) < 120:
            faults.append(f"{file}: its docstring's first line has {len(first)} characters")
    report(faults)


def public_functions(file: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in tree(file).body:
        if isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ) and not node.name.startswith("_"):
            yield node


def test_what_is_public_has_a_docstring() -> None:
    """A short function may leave it at its name."""
    report(
        [
            f"{file}:{node.lineno}: {node.name} has no docstring"
            for file in FILES
            for node in tree(file).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and (node.end_lineno or 0) - node.lineno >= 20
            and ast.get_docstring(node) is None
        ]
    )


def test_no_state_hides_in_a_module() -> None:
    faults = []
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Global):
                faults.append(f"{file}:{node.lineno}: global {', '.join(node.names)}")
            if isinstance(node, ast.Name) and node.id == "TYPE_CHECKING":
                faults.append(f"{file}:{node.lineno}: TYPE_CHECKING hides a cycle")
        for statement in tree(file).body:
            if not isinstance(statement, ast.Assign | ast.AnnAssign):
                continue
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            mutable = isinstance(statement.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp)
            for target in targets:
                if (
                    mutable
                    and isinstance(target, ast.Name)
                    and not (target.id.isupper() or target.id == "__all__")
                ):
                    faults.append(f"{file}:{statement.lineno}: {target.id} is state at module level")
    report(faults)


def test_no_untyped_bag_crosses_a_function() -> None:
    """`dict[str, Any]` in a signature is a type that nobody has written down."""
    faults = []
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                noted = [arg.annotation for arg in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
                if any("dict[str, Any]" in ast.unparse(note) for note in noted if note is not None):
                    faults.append(f"{file}:{node.lineno}: {node.name} passes dict[str, Any]")
    report(faults)


def is_logic(file: str) -> bool:
    """Whether a module decides anything: one that only re-exports or is a docstring needs no test of its own."""
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree(file)))


def test_every_room_has_its_mirrored_test() -> None:
    faults = []
    for file in filter(is_logic, FILES):
        path = Path(file)
        name = path.parent.name if path.name == "__init__.py" else path.stem
        folder = path.parent.parent if path.name == "__init__.py" else path.parent
        mirrored = TESTED_BY.get(file, f"{(folder / f'test_{name}.py').as_posix()}")
        if not (ROOT / "tests" / mirrored).is_file():
            faults.append(f"{file}: there is no tests/{mirrored}")
    report(faults)


def test_waivers_are_still_needed() -> None:
    assert all((PACKAGE / fault.split(":")[0]).exists() for fault in WAIVERS)
    assert all((PACKAGE / file).exists() for file in TESTED_BY)


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running the code."""
    ending = "\nimport json, sys; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    run = subprocess.run(
        [sys.executable, "-c", code + ending], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(json.loads(run.stderr.splitlines()[-1]))


HELP = """
import sys
sys.argv = ["oxlo", "--help"]
from oxlo_local.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
HEAVY = frozenset(
    "diffusers faster_whisper httpx huggingface_hub jinja2 llama_cpp numpy prometheus_client prompt_toolkit "
    "starlette torch transformers uvicorn".split()
)


def test_help_costs_little_more_than_typer() -> None:
    loaded = modules_after(HELP)
    assert not loaded & HEAVY
    assert len(loaded - modules_after("import typer, rich.panel, rich.table, asyncio")) < 250


@pytest.mark.skipif("server.py" not in FILES, reason="there is no server yet")
def test_the_parent_never_imports_an_engine() -> None:
    loaded = modules_after("import oxlo_local.server")
    assert not loaded & {
        "llama_cpp",
        "numpy",
        "jinja2",
        "torch",
        "diffusers",
        "faster_whisper",
        "ctranslate2",
        "av",
        "transformers",
    }


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="the text engine is not installed")
def test_engines_do_not_import_each_others_libraries() -> None:
    spoken = {"faster_whisper", "ctranslate2", "av", "onnxruntime", "torch"}
    assert not modules_after("import oxlo_local.engines.text.engine") & spoken
    assert not modules_after("import oxlo_local.engines.speech.engine") & {
        "llama_cpp",
        "torch",
        "transformers",
    }
    assert not modules_after("import oxlo_local.engines.image.engine") & {
        "llama_cpp",
        "ctranslate2",
        "av",
    }
