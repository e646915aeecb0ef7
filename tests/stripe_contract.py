"""Compiles the contract of the installed stripe-python into `requests.json` and `shapes.json` of the Stripe simulator.

The compiler parses the SDK's source, so it sees all annotations. `python -m tests.stripe_contract` rewrites both files
after an upgrade of the SDK; a test compares the files with a new compilation. The simulator only reads the files.
The form of a compiled type is described in `stripe_simulator/contract/__init__.py`.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

FOLDER: Final = Path(__file__).parents[1] / "stripe_simulator" / "contract"
Type = Any

# The parts of the API that are compiled. All other routes are known by name only.
SCOPE: Final = re.compile(
    r"/v1/(account$|customers|products|prices|coupons|promotion_codes|payment_methods|payment_intents|setup_intents"
    r"|subscription|invoice|credit_notes|refunds|disputes|charges|tax_rates|billing|checkout|entitlements|events|webhook_endpoints"
    r"|test_helpers/test_clocks)|/v2/(billing|core/event)"
)
_EVENTS: Final = re.compile(r"v1\.(billing|customer|invoice|price|product|subscription|entitlements)")
_REQUEST: Final = re.compile(r"self\._request\(\s*'(\w+)', f?['\"]([^'\"]+)['\"]")
_PLAIN: Final = {"str": "str", "int": "int", "float": "float", "bool": "bool", "Decimal": "decimal", "Any": "any"}
# Thin events inherit fields; all other bases are machinery of the SDK, or the options of a request.
_BASES: Final = {"Event"}


class _Scope(NamedTuple):
    """A module and the classes, outermost first, in which a name is looked up."""

    module: str
    classes: tuple[ast.ClassDef, ...] = ()

    def inside(self, node: ast.ClassDef) -> _Scope:
        return _Scope(self.module, (*self.classes, node))

    def key(self) -> str:
        return f"{self.module.removeprefix('stripe.')}:{'.'.join(node.name for node in self.classes)}"


def sdk_version() -> str:
    """The version of the installed stripe-python."""
    return importlib.metadata.version("stripe")


def _root() -> Path:
    spec = importlib.util.find_spec("stripe")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("stripe-python is not installed")
    return Path(spec.origin).parent


def _path(module: str) -> Path:
    base = _root().parent / Path(*module.split("."))
    return base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"


class _Module(NamedTuple):
    classes: dict[str, ast.ClassDef]
    imports: dict[str, tuple[str, str]]


@cache
def _module(name: str) -> _Module:
    tree = ast.parse(_path(name).read_text())
    nodes = [*tree.body, *(inner for node in tree.body if isinstance(node, ast.If) for inner in node.body)]
    imports = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    return _Module({node.name: node for node in nodes if isinstance(node, ast.ClassDef)}, imports)


def _find(name: str, scope: _Scope) -> _Scope:
    """The class that `name` means in `scope`: a nested class, a class of the module, or an imported one."""
    for depth in range(len(scope.classes), 0, -1):
        for node in scope.classes[depth - 1].body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return _Scope(scope.module, scope.classes[:depth]).inside(node)
    module = _module(scope.module)
    if name in module.classes:
        return _Scope(scope.module, (module.classes[name],))
    if name not in module.imports:
        raise LookupError(f"{scope.module}: no class {name}")
    target, original = module.imports[name]
    return _find(original, _Scope(target))


class Compiler:
    """Collects the definitions that the compiled types refer to."""

    def __init__(self) -> None:
        self.definitions: dict[str, dict[str, Type]] = {}

    def type_of(self, node: ast.expr, scope: _Scope) -> Type:
        """The compiled type of an annotation."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.type_of(ast.parse(node.value, mode="eval").body, scope)
        if isinstance(node, ast.Constant) and node.value is None:
            return "null"
        if isinstance(node, ast.BinOp):
            return self._union([node.left, node.right], scope)
        if isinstance(node, ast.Name):
            return _PLAIN[node.id] if node.id in _PLAIN else ["object", self.define(_find(node.id, scope))]
        if isinstance(node, ast.Subscript):
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return self._generic(ast.unparse(node.value), items, scope)
        raise TypeError(f"{scope.module}: {ast.unparse(node)}")

    def _generic(self, name: str, items: list[ast.expr], scope: _Scope) -> Type:
        match name:
            case "Literal":
                return ["enum", [item.value for item in items if isinstance(item, ast.Constant)]]
            case "NotRequired" | "Optional":
                inner = self.type_of(items[0], scope)
                return inner if inner[0] == "optional" else ["optional", inner]
            case "Union":
                return self._union(items, scope)
            case "List" | "Sequence":
                return ["list", self.type_of(items[0], scope)]
            case "Dict" | "UntypedStripeObject" | "Mapping":
                return ["map", self.type_of(items[-1], scope)]
            case "ExpandableField":
                return ["expandable", self.type_of(items[0], scope)]
            case "ListObject" | "SearchResultObject":
                v2 = _module(scope.module).imports.get(name, ("", ""))[0].startswith("stripe.v2.")
                return ["page2" if v2 else "page", self.type_of(items[0], scope)]
        raise TypeError(f"{scope.module}: {name}")

    def _union(self, nodes: list[ast.expr], scope: _Scope) -> Type:
        """Members in one level. `Literal[…] | str` is the enum: the SDK only keeps room for later values."""
        members: list[Type] = []
        wrappers: list[str] = []
        for node in nodes:
            member = self.type_of(node, scope)
            while member[0] in ("clear", "optional"):
                wrappers.append(member[0])
                member = member[1]
            members += member[1] if member[0] == "union" else [member]
        literals = [value for member in members if member[0] == "enum" for value in member[1]]
        others = [member for member in members if member[0] != "enum" and member != "null"]
        if "" in literals:
            wrappers.append("clear")
        if "null" in members:
            wrappers.append("optional")
        if values := [value for value in literals if value != ""]:
            others = [["enum", values], *(member for member in others if member != "str")]
        unique = [member for index, member in enumerate(others) if member not in others[:index]]
        result: Type = unique[0] if len(unique) == 1 else ["union", unique]
        for wrapper in ("clear", "optional"):
            result = [wrapper, result] if wrapper in wrappers else result
        return result

    def define(self, scope: _Scope) -> str:
        """Compile the fields of a class and of its bases once. Returns the definition's key."""
        key = scope.key()
        if key not in self.definitions:
            fields: dict[str, Type] = {}
            self.definitions[key] = fields
            node = scope.classes[-1]
            for base in node.bases:
                if isinstance(base, ast.Name) and base.id in _BASES:
                    fields |= self.definitions[self.define(_find(base.id, scope))]
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    name, annotation = item.target.id, ast.unparse(item.annotation)
                    # A trailing underscore avoids a keyword of Python, as in `from_`.
                    if not annotation.startswith("ClassVar") and not name.startswith("_"):
                        fields[name.removesuffix("_")] = self.type_of(item.annotation, scope)
        return key


def _service_methods() -> list[tuple[str, str, _Scope, ast.FunctionDef]]:
    """(HTTP method, path, where names are looked up, function) of every route."""
    methods = []
    for path in sorted(_root().rglob("*_service.py")):
        name = ".".join(path.relative_to(_root().parent).with_suffix("").parts)
        if name == "stripe._stripe_service":
            continue
        for service in _module(name).classes.values():
            methods += [
                (request[1].upper(), request[2], _Scope(name), node)
                for node in service.body
                if isinstance(node, ast.FunctionDef) and (request := _REQUEST.search(ast.unparse(node)))
            ]
    return methods


def _event_shapes(compiler: Compiler) -> dict[str, str]:
    """The definition of each thin event by its `type`: `data` and `related_object` depend on the type."""
    shapes = {}
    for path in sorted((_root() / "events").glob("_v1_*_event.py")):
        name = ".".join(path.relative_to(_root().parent).with_suffix("").parts)
        for node in _module(name).classes.values():
            if node.name.endswith("Notification"):
                continue
            for item in node.body:
                if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "LOOKUP_TYPE":
                    lookup = ast.literal_eval(item.value)
                    if _EVENTS.match(lookup):
                        shapes[lookup] = compiler.define(_Scope(name, (node,)))
    return shapes


def compile_contract() -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of `requests.json` and `shapes.json`."""
    requests, shapes = Compiler(), Compiler()
    parameters: dict[str, Type] = {}
    answers: dict[str, Type] = {}
    known: list[str] = []
    for method, path, scope, node in _service_methods():
        route = f"{method} {path}"
        known.append(route)
        if not SCOPE.match(path) or node.returns is None:
            continue
        annotations = [argument.annotation for argument in node.args.args if argument.arg == "params"]
        if annotations and annotations[0] is not None:
            wanted = requests.type_of(annotations[0], scope)
            parameters[route] = (wanted[1] if wanted[0] == "optional" else wanted)[1]
        answers[route] = shapes.type_of(node.returns, scope)
    # No route answers with a summary; an event contains it.
    shapes.define(_find("ActiveEntitlementSummary", _Scope("stripe.entitlements._active_entitlement_summary")))
    events = _event_shapes(shapes)
    version = sdk_version()
    api_version = _api_version()
    return (
        {
            "sdk": version,
            "api": api_version,
            "known": sorted(set(known)),
            "routes": parameters,
            "definitions": requests.definitions,
        },
        {"sdk": version, "api": api_version, "routes": answers, "events": events, "definitions": shapes.definitions},
    )


def _api_version() -> str:
    text = _path("stripe._api_version").read_text()
    found = re.search(r'CURRENT\s*=\s*"([^"]+)"', text)
    if found is None:
        raise LookupError("stripe._api_version has no CURRENT")
    return found[1]


def dump(document: dict[str, Any]) -> str:
    """The document as JSON with one definition a line, so that an upgrade's differences can be read."""
    lines = []
    for name, value in document.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"{json.dumps(key)}: {json.dumps(value[key])}" for key in sorted(value))
            lines.append(f"{json.dumps(name)}: {{\n{inner}\n}}")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    for file, document in zip(("requests.json", "shapes.json"), compile_contract(), strict=True):
        (FOLDER / file).write_text(dump(document))
