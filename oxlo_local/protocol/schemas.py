"""Whether a JSON Schema can be enforced while an answer is written: every rule that shows in the schema alone.

The engine's grammar (engines/text/grammar.py) enforces what is listed here and reports some of what it cannot. It says
nothing of the rest: unknown keywords, references that lead nowhere, recursion without an end. A schema must never be
loosened in silence, so a keyword that is neither enforced nor a mere note is a 400 that names it.

The limits keep the compilation of a hostile schema short. No I/O and no engine here.
"""

from collections import deque
from collections.abc import Callable, Iterator

from oxlo_local.errors import BadRequest, UnsupportedValue

MAX_DEPTH = 64
MAX_ELEMENTS = 20_000
MAX_PATTERNS = 4096  # characters of all patterns together
MAX_BRANCHES = 16  # of one allOf: each is intersected with all others
MAX_TOGETHER = 8  # patterns and formats that one value has to match
MAX_MULTIPLE = 1000  # multipleOf becomes an automaton of so many states

_ONE = ("additionalProperties", "items", "additionalItems")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
ENFORCED = frozenset(
    "$ref additionalItems additionalProperties allOf anyOf const enum exclusiveMaximum exclusiveMinimum format items "
    "maxItems maxLength maxProperties maximum minItems minLength minProperties minimum multipleOf oneOf pattern "
    "patternProperties prefixItems properties required type".split()
)
# Notes to a reader, which no value can break. OpenAPI's `nullable` only allows more than the answer will use.
_NOTES = frozenset(
    "$anchor $comment $defs $id $schema contentEncoding contentMediaType contentSchema default definitions deprecated "
    "description discriminator example examples externalDocs nullable readOnly title writeOnly xml".split()
)
# Keywords at values that ask for nothing, as generators of schemas write them.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "propertyNames": (True, {}, {"type": "string"}),
    "uniqueItems": (False,),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "format": ("password", "binary"),
}
# OpenAPI's formats of numbers, as bounds that a double holds.
_NUMBERS: dict[str, tuple[int, int] | None] = {
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1024),
    "uint64": (0, 2**64 - 2048),
    "float": None,
    "double": None,
}
FORMATS = frozenset("date date-time duration email hostname ipv4 ipv6 time uri uuid".split())

Node = dict[str, object]


def check(schema: Node, param: str) -> None:
    """Raise UnsupportedValue, or BadRequest, for a schema that cannot be enforced; `param` is where it lies.

    What asks for nothing is taken out of the schema, and formats of numbers become bounds.
    """
    nodes = _collect(schema, param)
    edges = {id(node): _refer(node, path, schema, nodes) for node, path in nodes.values()}
    patterns = sum(len(pattern) for node, _ in nodes.values() for pattern in _patterns(node))
    if patterns > MAX_PATTERNS:
        raise UnsupportedValue(
            f"The patterns of this schema have {patterns} characters; at most {MAX_PATTERNS} can be enforced.",
            param=param,
        )
    _refuse_costly(nodes, edges, _refuse_circles(nodes, edges))
    _refuse_endless(nodes, edges)


def check_size(value: object, param: str) -> None:
    """Raise BadRequest for JSON with more depth or elements than any schema that can be enforced, enums and all."""
    level: list[object] = [value]
    seen = depth = 0
    while level:
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
        ]
        seen += len(level)
        depth += 1
        if seen > MAX_ELEMENTS:
            raise BadRequest(f"The schema has more than {MAX_ELEMENTS} elements.", param=param)
        if depth > 2 * MAX_DEPTH:
            raise BadRequest(f"The schema is nested deeper than {MAX_DEPTH} levels.", param=param)


def _cannot(keyword: str, path: str, why: str) -> UnsupportedValue:
    word = keyword[:64].encode("ascii", "backslashreplace").decode()
    return UnsupportedValue(f"The keyword '{word}' cannot be enforced here: {why}.", param=f"{path}.{word}")


# -- one keyword after the other --------------------------------------------------------------------------------------


def _collect(schema: Node, param: str) -> dict[int, tuple[Node, str]]:
    """All schemas in `schema` by identity, each with its path, parents before children."""
    nodes: dict[int, tuple[Node, str]] = {}
    waiting = deque([(schema, param, 0)])
    while waiting:
        node, path, depth = waiting.popleft()
        if depth > MAX_DEPTH:
            raise BadRequest(f"The schema is nested deeper than {MAX_DEPTH} levels.", param=param)
        nodes[id(node)] = node, path
        _simplify(node)
        _check_node(node, path)
        if "$id" in node and node is not schema:
            raise _cannot("$id", path, "references are read from the root of the schema")
        waiting += ((child, f"{path}.{place}", depth + 1) for child, place in _children(node, path))
    return nodes


def _simplify(node: Node) -> None:
    for keyword, neutral in _NEUTRAL.items():
        if keyword in node and node[keyword] in neutral:
            del node[keyword]
    format = node.get("format")
    if node.get("type") not in ("integer", "number") or not isinstance(format, str) or format not in _NUMBERS:
        return
    del node["format"]
    for keyword, bound, tighter in zip(
        ("minimum", "maximum"), _NUMBERS[format] or (), (max, min), strict=False
    ):
        said = node.get(keyword, bound)
        if isinstance(said, int | float):
            node[keyword] = tighter(said, bound)


def _check_node(node: Node, path: str) -> None:
    for keyword in node:
        if keyword not in ENFORCED and keyword not in _NOTES and not _vendor_note(keyword):
            raise _cannot(keyword, path, "it is unknown, or no grammar can express it")
    format = node.get("format")
    if format is not None and not (isinstance(format, str) and format in FORMATS):
        raise _cannot("format", path, f"the formats are {', '.join(sorted(FORMATS))}")
    at_least = node.get("minProperties")
    if isinstance(at_least, int) and at_least > 1:
        raise _cannot(
            "minProperties", path, "only 0 and 1 can, since JSON allows a member twice; use 'required'"
        )
    multiple = node.get("multipleOf")
    if isinstance(multiple, int | float) and multiple > MAX_MULTIPLE:
        raise _cannot("multipleOf", path, f"it may be {MAX_MULTIPLE} at most")
    branches = node.get("allOf")
    if isinstance(branches, list) and len(branches) > MAX_BRANCHES:
        raise _cannot("allOf", path, f"it may have {MAX_BRANCHES} branches at most")


def _vendor_note(keyword: str) -> bool:
    """`x-guidance` is the grammar's own switch, which could turn enforcement off."""
    return keyword.startswith("x-") and keyword != "x-guidance"


def _children(node: Node, path: str) -> Iterator[tuple[Node, str]]:
    """The schemas directly inside `node`, and where. Raises BadRequest where there should be one and is none."""
    for keyword in _ONE:
        if isinstance(node.get(keyword), dict):
            yield _schema(node[keyword], f"{path}.{keyword}"), keyword
    for keyword in _LISTS:
        members = node.get(keyword)
        for index, member in enumerate(members if isinstance(members, list) else ()):
            if not isinstance(member, bool):
                place = f"{keyword}[{index}]"
                yield _schema(member, f"{path}.{place}"), place
    for keyword in _MAPS:
        named = node.get(keyword)
        for name, member in (named if isinstance(named, dict) else {}).items():
            if not isinstance(member, bool):
                place = f"{keyword}.{name[:64].encode('ascii', 'backslashreplace').decode()}"
                yield _schema(member, f"{path}.{place}"), place


def _schema(value: object, path: str) -> Node:
    if not isinstance(value, dict):
        raise BadRequest("A schema must be an object, true or false.", param=path)
    return value


def _patterns(node: Node) -> Iterator[str]:
    if isinstance(node.get("pattern"), str):
        yield str(node["pattern"])
    named = node.get("patternProperties")
    yield from named if isinstance(named, dict) else ()


# -- references -------------------------------------------------------------------------------------------------------


def _refer(node: Node, path: str, root: Node, nodes: dict[int, tuple[Node, str]]) -> Node | None:
    """The schema that `$ref` means. Raises UnsupportedValue where it leads out of the schema, or nowhere."""
    if "$ref" not in node:
        return None
    pointer = node["$ref"]
    found: object = root
    if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
        raise _cannot("$ref", path, "it must point into this schema, such as '#/$defs/name'")
    for step in pointer.split("/")[1:]:
        found = _inside(found, step.replace("~1", "/").replace("~0", "~"))
    if id(found) not in nodes and not isinstance(found, bool):
        raise _cannot("$ref", path, "there is no schema where it points")
    return found if isinstance(found, dict) else None


def _inside(value: object, step: str) -> object:
    if isinstance(value, dict):
        return value.get(step)
    if isinstance(value, list) and step.isdecimal() and int(step[:6]) < len(value):
        return value[int(step[:6])]
    return None


def _listed(node: Node, keyword: str) -> list[Node]:
    members = node.get(keyword)
    return [each for each in members if isinstance(each, dict)] if isinstance(members, list) else []


def _refuse_circles(nodes: dict[int, tuple[Node, str]], edges: dict[int, Node | None]) -> list[int]:
    """A schema that means itself, with no property or item between, says nothing about any value.

    The order that is found on the way: every schema comes before those that it means.
    """
    meant: dict[int, list[int]] = {}
    for key, (node, _) in nodes.items():
        same = [each for keyword in ("allOf", "anyOf", "oneOf") for each in _listed(node, keyword)]
        target = edges[key]
        meant[key] = [id(each) for each in (*same, *([target] if target is not None else []))]
    entries = dict.fromkeys(nodes, 0)
    for targets in meant.values():
        for target_id in targets:
            entries[target_id] += 1
    free = deque(key for key, count in entries.items() if count == 0)
    order = []
    while free:
        order.append(free.popleft())
        for target_id in meant[order[-1]]:
            entries[target_id] -= 1
            if entries[target_id] == 0:
                free.append(target_id)
    for key, count in entries.items():
        if count and edges[key] is not None:
            raise _cannot("$ref", nodes[key][1], "it leads back to itself")
    return order


def _refuse_costly(
    nodes: dict[int, tuple[Node, str]], edges: dict[int, Node | None], order: list[int]
) -> None:
    """What must hold of one value at once becomes one automaton, whose size may be the product of its parts."""
    costs: dict[int, int] = {}
    for key in reversed(order):
        node, path = nodes[key]
        # Two multiples meet in their product, so that they may not be two.
        cost = ("pattern" in node) + ("format" in node) + (MAX_TOGETHER // 2 + 1) * ("multipleOf" in node)
        target = edges[key]
        cost += sum(costs[id(each)] for each in _listed(node, "allOf")) + (
            costs[id(target)] if target is not None else 0
        )
        for keyword in ("anyOf", "oneOf"):
            cost += max((costs[id(each)] for each in _listed(node, keyword)), default=0)
        if cost > MAX_TOGETHER:
            keyword = "allOf" if "allOf" in node else "$ref"
            raise _cannot(
                keyword, path, f"more than {MAX_TOGETHER} patterns, or 2 multiples, would hold at once"
            )
        costs[key] = cost


def _refuse_endless(nodes: dict[int, tuple[Node, str]], edges: dict[int, Node | None]) -> None:
    """Every recursion needs a way out: an optional property, an empty list, another branch."""
    finite: set[int] = set()
    asking: dict[int, list[int]] = {}
    for key, (node, path) in nodes.items():
        for child, _ in _children(node, path):
            asking.setdefault(id(child), []).append(key)
        target = edges[key]
        if target is not None:
            asking.setdefault(id(target), []).append(key)
    waiting = deque(reversed(nodes))
    while waiting:
        key = waiting.popleft()
        if key not in finite and _ends(nodes[key][0], edges[key], finite):
            finite.add(key)
            waiting.extend(asking.get(key, ()))
    for key, (_, path) in nodes.items():
        if key not in finite:
            raise _cannot("$ref", path, "the recursion never ends, so that no value is valid")


def _ends(node: Node, target: Node | None, finite: set[int]) -> bool:
    """Whether some finite value may satisfy `node`, given the schemas known to have one."""

    def known(schema: object) -> bool:
        return not isinstance(schema, dict) or id(schema) in finite

    if "enum" in node or "const" in node:
        return True
    if not known(target) or not all(map(known, _listed(node, "allOf"))):
        return False
    for keyword in ("anyOf", "oneOf"):
        branches = node.get(keyword)
        if isinstance(branches, list) and not any(map(known, branches)):
            return False
    kinds = node.get("type", "string")
    kinds = {kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(kind, str)}
    if not kinds or not kinds <= {"object", "array"}:
        return True
    return ("array" in kinds and _array_ends(node, known)) or (
        "object" in kinds and _object_ends(node, known)
    )


def _array_ends(node: Node, known: Callable[[object], bool]) -> bool:
    least = node.get("minItems")
    if not isinstance(least, int) or least <= 0:
        return True
    first = node.get("prefixItems", node.get("items"))
    first = first if isinstance(first, list) else []
    rest = node.get("items", True)
    rest = node.get("additionalItems", True) if isinstance(rest, list) else rest
    return all(map(known, first[:least])) and (len(first) >= least or known(rest))


def _object_ends(node: Node, known: Callable[[object], bool]) -> bool:
    required, properties = node.get("required"), node.get("properties")
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    schemas = properties if isinstance(properties, dict) else {}
    return all(known(schemas.get(name, node.get("additionalProperties"))) for name in names)
