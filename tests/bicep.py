"""Deploys Bicep on paper: which resources a template and its parameters ask for, with names and bodies.

The real compiler comes from no registry that tests may use. This reads the part of the language that infra/
is written in and evaluates it: parameters with their types and limits, modules, loops, conditions, references
and `FUNCTIONS`. What only Azure can tell (an endpoint, a principal id) is a `Runtime` text that says what it
stands for. Anything it does not know is an error, never a guess.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

TOKEN = re.compile(
    r"""(?P<skip>[ \t\r]+|//[^\n]*|/\*.*?\*/)|(?P<newline>\n)|(?P<number>\d+)|(?P<name>[A-Za-z_]\w*)
    |(?P<string>'(?:\\.|\$\{(?:[^{}']|'[^']*'|\{[^{}]*\})*\}|[^'\\])*')
    |(?P<sign>=>|==|!=|<=|>=|&&|\|\||\?\?|\.\?|[-+*/%<>!?:.,=@|()\[\]{}])""",
    re.VERBOSE | re.DOTALL,
)
BINARY = [["??"], ["||"], ["&&"], ["==", "!="], ["<", "<=", ">", ">="], ["+", "-"], ["*", "/", "%"]]
ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "int": int,
    "bool": bool,
    "object": dict,
    "array": list,
}


class BicepError(Exception):
    """The template is wrong, or uses what is not known here; the file and the place."""


class Runtime(str):
    """A text that only a deployment knows."""


@dataclass(frozen=True)
class Scope:
    """Where a deployment or a resource is: a subscription, or a resource group in one."""

    subscription: str
    group: str | None = None

    @property
    def id(self) -> str:
        return f"/subscriptions/{self.subscription}" + (f"/resourceGroups/{self.group}" if self.group else "")


@dataclass
class Resource:
    """One resource a deployment asks for; `body` is what stands in braces, less name, parent and scope."""

    type: str
    api_version: str
    name: str
    id: str
    body: dict[str, Any]
    existing: bool
    file: str


@dataclass
class _Statement:
    kind: str
    name: str
    type: Any = None
    value: Any = None
    existing: bool = False
    decorators: dict[str, Any] = field(default_factory=dict)


# --- reading ---


class _Reader:
    """Recursive descent over the tokens of one file; a tree is nested tuples that begin with their kind."""

    def __init__(self, source: str, file: str) -> None:
        self.file, self.source, self.tokens, place = file, source, [], 0
        while place < len(source):
            match = TOKEN.match(source, place)
            if match is None:
                raise BicepError(
                    f"{file}:{source.count(chr(10), 0, place) + 1}: {source[place : place + 20]!r}"
                )
            if match.lastgroup != "skip":
                self.tokens.append((match.lastgroup, match[0], place))
            place = match.end()
        self.tokens.append(("end", "", place))
        self.at = 0

    def error(self, wanted: str) -> BicepError:
        _, text, place = self.tokens[self.at]
        line = self.source.count("\n", 0, place) + 1
        return BicepError(f"{self.file}:{line}: {wanted} expected, not {text!r}")

    def peek(self, *texts: str) -> bool:
        return self.tokens[self.at][1] in texts and self.tokens[self.at][0] != "string"

    def take(self, *texts: str) -> str:
        if not self.peek(*texts):
            raise self.error(" or ".join(texts))
        return self.next()

    def next(self, kind: str = "") -> str:
        found, text, _ = self.tokens[self.at]
        if kind and found != kind:
            raise self.error(f"a {kind}")
        self.at += 1
        return text

    def maybe(self, text: str) -> bool:
        if self.peek(text):
            self.at += 1
            return True
        return False

    def lines(self) -> None:
        while self.tokens[self.at][0] == "newline":
            self.at += 1

    def statements(self, until: str = "") -> Iterator[_Statement]:
        self.lines()
        while not self.peek(until) or (until == "" and self.tokens[self.at][0] != "end"):
            yield self.statement()
            self.lines()

    def statement(self) -> _Statement:
        decorators = {}
        while self.maybe("@"):
            name, call = self.next("name"), []
            self.take("(")
            self.lines()
            while not self.maybe(")"):
                call.append(self.expression())
                self.maybe(",")
                self.lines()
            decorators[name] = call[0] if call else None
            self.lines()
        kind = self.next("name")
        if kind in ("targetScope",):
            self.take("=")
            return _Statement(kind, kind, value=self.expression())
        if kind == "using":
            return _Statement(kind, kind, value=self.expression())
        name = self.next("name")
        if kind == "type":
            self.take("=")
            return _Statement(kind, name, type=self.type_expression())
        if kind in ("resource", "module"):
            what = self.string_parts(self.next("string"))
            existing = self.maybe("existing")
            self.take("=")
            return _Statement(kind, name, what[0], self.expression(), existing, decorators)
        if kind not in ("param", "var", "output"):
            raise self.error("a declaration")
        of_type = None if kind == "var" or self.peek("=") else self.type_expression()
        value = self.expression() if self.maybe("=") else None
        return _Statement(kind, name, of_type, value, False, decorators)

    def type_expression(self) -> Any:
        options = [self.one_type()]
        while self.maybe("|"):
            options.append(self.one_type())
        return options[0] if len(options) == 1 else ("either", options)

    def one_type(self) -> Any:
        found = self.tokens[self.at][0]
        if self.maybe("("):
            inner = self.type_expression()
            self.take(")")
        elif self.maybe("{"):
            self.lines()
            inner = ("fields", {})
            while not self.maybe("}"):
                while self.maybe("@"):
                    self.postfix()
                    self.lines()
                key = self.next("name")
                self.take(":")
                inner[1][key] = self.type_expression()
                self.lines()
        elif found == "string":
            inner = ("is", self.string_parts(self.next())[0])
        else:
            inner = self.next("name")
        while self.peek("[", "?"):
            if self.next() == "[":
                self.take("]")
                inner = ("list", inner)
            else:
                inner = ("maybe", inner)
        return inner

    def expression(self) -> Any:
        condition = self.binary(0)
        self_at = self.at
        self.lines()
        if not self.maybe("?"):
            self.at = self_at
            return condition
        self.lines()
        then = self.expression()
        self.lines()
        self.take(":")
        self.lines()
        return ("if-else", condition, then, self.expression())

    def binary(self, level: int) -> Any:
        if level == len(BINARY):
            return self.unary()
        left = self.binary(level + 1)
        while self.peek(*BINARY[level]):
            left = ("binary", self.next(), left, self.binary(level + 1))
        return left

    def unary(self) -> Any:
        if self.peek("!", "-"):
            return ("unary", self.next(), self.unary())
        return self.postfix()

    def postfix(self) -> Any:
        value = self.primary()
        while self.peek(".", ".?", "[", "("):
            sign = self.next()
            if sign == "(":
                arguments = []
                self.lines()
                while not self.maybe(")"):
                    arguments.append(self.expression())
                    self.maybe(",")
                    self.lines()
                value = ("call", value[1], arguments)
            elif sign == "[":
                value = ("index", value, self.expression())
                self.take("]")
            else:
                value = ("member", value, self.next("name"), sign == ".?")
        return value

    def primary(self) -> Any:
        found, text, _ = self.tokens[self.at]
        if found == "number":
            return ("value", int(self.next()))
        if found == "string":
            return ("text", self.string_parts(self.next()))
        if text == "{":
            return self.braces()
        if text == "[":
            return self.brackets()
        if self.maybe("("):
            inner = self.expression()
            self.take(")")
            return inner
        name = self.next("name")
        if name == "if" and self.peek("("):
            self.take("(")
            condition = self.expression()
            self.take(")")
            return ("when", condition, self.braces())
        if self.maybe("=>"):
            return ("lambda", name, self.expression())
        constants = {"true": True, "false": False, "null": None}
        return ("value", constants[name]) if name in constants else ("name", name)

    def braces(self) -> Any:
        self.take("{")
        pairs, nested = [], []
        self.lines()
        while not self.maybe("}"):
            if self.peek("@") or (self.peek("resource") and self.tokens[self.at + 1][0] == "name"):
                nested.append(self.statement())
            else:
                found = self.tokens[self.at][0]
                key = (
                    ("text", self.string_parts(self.next()))
                    if found == "string"
                    else ("value", self.next("name"))
                )
                self.take(":")
                pairs.append((key, self.expression()))
            self.maybe(",")
            self.lines()
        return ("object", pairs, nested)

    def brackets(self) -> Any:
        self.take("[")
        self.lines()
        if self.maybe("for"):
            index = None
            if self.maybe("("):
                name = self.next("name")
                self.take(",")
                index = self.next("name")
                self.take(")")
            else:
                name = self.next("name")
            self.take("in")
            values = self.expression()
            self.take(":")
            body = self.expression()
            self.take("]")
            return ("for", name, index, values, body)
        items = []
        while not self.maybe("]"):
            items.append(self.expression())
            self.maybe(",")
            self.lines()
        return ("array", items)

    def string_parts(self, quoted: str) -> list[Any]:
        """Texts, and a tree for each `${...}`; a single text where there is none."""
        parts: list[Any] = [""]
        body, place = quoted[1:-1], 0
        while place < len(body):
            if body[place] == "\\":
                parts[-1] += ESCAPES.get(body[place + 1], body[place + 1])
                place += 2
            elif body.startswith("${", place):
                end = re.compile(r"(?:[^{}']|'[^']*'|\{[^{}]*\})*").match(body, place + 2)
                assert end
                parts += [_Reader(end[0], self.file).expression(), ""]
                place = end.end() + 1
            else:
                parts[-1] += body[place]
                place += 1
        return parts


@cache
def read(path: Path) -> list[_Statement]:
    """The declarations of a file, in order; BicepError with the line of what cannot be read."""
    return list(_Reader(path.read_text(), path.name).statements())


# --- evaluating ---


def _digest(*texts: Any) -> str:
    return hashlib.sha256("\0".join(map(str, texts)).encode()).hexdigest()


def _union(*values: Any) -> Any:
    if isinstance(values[0], dict):
        return {key: value for one in values for key, value in one.items()}
    flat = [one for value in values for one in value]
    return [one for number, one in enumerate(flat) if one not in flat[:number]]


# uniqueString and guid have Azure's form and are as unique; the letters are others.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "uniqueString": lambda *texts: re.sub(r"\d", "k", _digest(*texts))[:13],
    "guid": lambda *texts: str(uuid.UUID(_digest(*texts)[:32])),
    "take": lambda value, count: value[:count],
    "substring": lambda text, start, length: text[start : start + length],
    "toLower": str.lower,
    "toUpper": str.upper,
    "toObject": lambda values, key, value: {key(one): value(one) for one in values},
    "replace": str.replace,
    "endsWith": str.endswith,
    "startsWith": str.startswith,
    "contains": lambda held, one: one in held,
    "empty": lambda value: not value,
    "length": len,
    "last": lambda values: values[-1],
    "split": str.split,
    "string": lambda value: value if isinstance(value, str) else json.dumps(value),
    "union": _union,
    "flatten": lambda lists: [one for values in lists for one in values],
    "items": lambda value: [{"key": key, "value": value[key]} for key in sorted(value)],
    "map": lambda values, by: [by(one) for one in values],
    "filter": lambda values, by: [one for one in values if by(one)],
    "readEnvironmentVariable": lambda name, default="": default,
}
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "&&": lambda a, b: a and b,
    "||": lambda a, b: a or b,
    "??": lambda a, b: b if a is None else a,
}


class Deployment:
    """One file, deployed on paper into a scope; `resources` has those of its modules too, in order."""

    def __init__(
        self,
        path: Path,
        parameters: dict[str, Any],
        scope: Scope,
        cloud: str = "https://management.azure.com/",
    ) -> None:
        self.path, self.scope, self.cloud = path, scope, cloud
        self.declared = {one.name: one for one in read(path) if one.kind != "output"}
        self.resources: list[Resource] = []
        self.modules: list[Deployment] = []
        self.used: set[str] = set()
        self._known: dict[str, Any] = {}
        self._given(parameters)
        for name, one in self.declared.items():
            if one.kind in ("resource", "module"):
                self.value(name)
        self.outputs = {one.name: self.evaluate(one.value, {}) for one in read(path) if one.kind == "output"}

    def _given(self, parameters: dict[str, Any]) -> None:
        declared = {name: one for name, one in self.declared.items() if one.kind == "param"}
        if unknown := parameters.keys() - declared.keys():
            raise BicepError(f"{self.path.name} has no parameter {sorted(unknown)}")
        for name, one in declared.items():
            if name in parameters:
                value = parameters[name]
            elif one.value is not None:
                value = self.evaluate(one.value, {})
            elif one.type[0] == "maybe":
                value = None
            else:
                raise BicepError(f"{self.path.name} wants the parameter '{name}'")
            self._check(name, value, one.type)
            self._check_limits(name, value, one)
            self._known[name] = value

    def _check(self, name: str, value: Any, of_type: Any) -> None:
        """BicepError unless the value is of the declared type."""
        kind, inner = of_type if isinstance(of_type, tuple) else ("named", of_type)
        if kind == "maybe":
            if value is not None:
                self._check(name, value, inner)
        elif kind == "list":
            self._check(name, value, "array")
            for one in value:
                self._check(f"{name}[]", one, inner)
        elif kind == "either":
            if value not in [text for _, text in inner]:
                raise BicepError(
                    f"{self.path.name}: {name} is {value!r}, not one of {[text for _, text in inner]}"
                )
        elif kind == "fields":
            self._check(name, value, "object")
            if unknown := value.keys() - inner.keys():
                raise BicepError(f"{self.path.name}: {name} has no {sorted(unknown)}")
            for key, one in inner.items():
                self._check(f"{name}.{key}", value.get(key), one)
        elif inner in self.declared:
            self.used.add(inner)
            self._check(name, value, self.declared[inner].type)
        elif not isinstance(value, TYPES[inner]) or (inner == "int" and isinstance(value, bool)):
            raise BicepError(f"{self.path.name}: {name} is {value!r}, which is no {inner}")

    def _check_limits(self, name: str, value: Any, one: _Statement) -> None:
        limits = {
            key: self.evaluate(tree, {}) for key, tree in one.decorators.items() if key != "description"
        }
        wrong = {
            "minLength": lambda least: len(value) < least,
            "maxLength": lambda most: len(value) > most,
            "minValue": lambda least: value < least,
            "maxValue": lambda most: value > most,
            "allowed": lambda allowed: value not in allowed,
        }
        for limit, bound in limits.items():
            if wrong[limit](bound):
                raise BicepError(f"{self.path.name}: {name} is {value!r}, against @{limit}({bound})")

    def value(self, name: str) -> Any:
        """What a name stands for; evaluated once."""
        self.used.add(name)
        if name not in self._known:
            one = self.declared.get(name)
            if one is None:
                raise BicepError(f"{self.path.name}: nothing is called '{name}'")
            made = {"resource": self._resource, "module": self._module}.get(one.kind)
            self._known[name] = self._each(one, made) if made else self.evaluate(one.value, {})
        return self._known[name]

    def _each(self, one: _Statement, make: Callable[[_Statement, Any, dict[str, Any]], Any]) -> Any:
        """The resource or module of a declaration; a list for a loop, None where its condition is false."""

        def made(tree: Any, names: dict[str, Any]) -> Any:
            if tree[0] == "when":
                return make(one, tree[2], names) if self.evaluate(tree[1], names) else None
            return make(one, tree, names)

        if one.value[0] == "for":
            return [made(one.value[4], names) for names in self._rounds(one.value, {})]
        return made(one.value, {})

    def _rounds(self, tree: Any, names: dict[str, Any]) -> Iterator[dict[str, Any]]:
        _, name, index, values, _ = tree
        for number, value in enumerate(self.evaluate(values, names)):
            yield names | {name: value} | ({index: number} if index else {})

    def _resource(
        self, one: _Statement, tree: Any, names: dict[str, Any], parent: Resource | None = None
    ) -> Resource:
        kind, _, version = one.type.partition("@")
        body = self.evaluate(tree, names)
        parent = body.pop("parent", parent)
        scope = body.pop("scope", None) or self.scope
        name = body.pop("name")
        if parent is not None:
            kind = kind if "/" in kind else f"{parent.type}/{kind}"
            version = version or parent.api_version
            full, where = f"{parent.name}/{name}", f"{parent.id}/{kind.rpartition('/')[2]}/{name}"
        else:
            segments = zip(kind.split("/")[1:], name.split("/"), strict=True)
            path = "".join(f"/{one}/{other}" for one, other in segments)
            full = name
            where = f"{scope.id}/providers/{kind.split('/')[0]}{path}"
            if kind == "Microsoft.Resources/resourceGroups":
                where = f"{scope.id}/resourceGroups/{name}"
        made = Resource(kind, version, full, where, body, one.existing, str(self.path.name))
        self.resources.append(made)
        for nested in tree[2]:
            self._resource(nested, nested.value, names, parent=made)
        return made

    def _module(self, one: _Statement, tree: Any, names: dict[str, Any]) -> Deployment:
        body = self.evaluate(tree, names)
        scope = body.get("scope", self.scope)
        if isinstance(scope, Resource):
            scope = Scope(self.scope.subscription, scope.name)
        path = (self.path.parent / one.type).resolve()
        wanted = next((x.value[1][0] for x in read(path) if x.kind == "targetScope"), "resourceGroup")
        if (wanted == "subscription") != (scope.group is None):
            raise BicepError(f"{self.path.name}: {one.type} is for a {wanted}, not {scope.id}")
        held = Deployment(path, body.get("params", {}), scope, self.cloud)
        self.resources += held.resources
        self.modules += [held, *held.modules]
        return held

    def evaluate(self, tree: Any, names: dict[str, Any]) -> Any:
        """The value of an expression; `names` are those of loops and lambdas around it."""
        return getattr(self, "_eval_" + tree[0].replace("-", "_"))(names, *tree[1:])

    def _eval_value(self, names: dict[str, Any], value: Any) -> Any:
        return value

    def _eval_text(self, names: dict[str, Any], parts: list[Any]) -> str:
        found = [part if isinstance(part, str) else self.evaluate(part, names) for part in parts]
        text = "".join(str(part).lower() if isinstance(part, bool) else str(part) for part in found)
        return Runtime(text) if any(isinstance(part, Runtime) for part in found) else text

    def _eval_name(self, names: dict[str, Any], name: str) -> Any:
        return names[name] if name in names else self.value(name)

    def _eval_object(self, names: dict[str, Any], pairs: list[Any], nested: list[Any]) -> dict[str, Any]:
        return {self.evaluate(key, names): self.evaluate(value, names) for key, value in pairs}

    def _eval_array(self, names: dict[str, Any], items: list[Any]) -> list[Any]:
        return [self.evaluate(one, names) for one in items]

    def _eval_for(self, names: dict[str, Any], *loop: Any) -> list[Any]:
        return [self.evaluate(loop[3], inner) for inner in self._rounds(("for", *loop), names)]

    def _eval_if_else(self, names: dict[str, Any], condition: Any, then: Any, other: Any) -> Any:
        return self.evaluate(then if self.evaluate(condition, names) else other, names)

    def _eval_lambda(self, names: dict[str, Any], name: str, body: Any) -> Callable[[Any], Any]:
        return lambda value: self.evaluate(body, names | {name: value})

    def _eval_unary(self, names: dict[str, Any], sign: str, tree: Any) -> Any:
        value = self.evaluate(tree, names)
        return not value if sign == "!" else -value

    def _eval_binary(self, names: dict[str, Any], sign: str, left: Any, right: Any) -> Any:
        return OPERATORS[sign](self.evaluate(left, names), self.evaluate(right, names))

    def _eval_index(self, names: dict[str, Any], held: Any, index: Any) -> Any:
        return self.evaluate(held, names)[self.evaluate(index, names)]

    def _eval_member(self, names: dict[str, Any], held: Any, name: str, safe: bool) -> Any:
        value = self.evaluate(held, names)
        if isinstance(value, Runtime):
            return Runtime(f"{value}.{name}")
        if isinstance(value, Resource):
            return getattr(value, name) if name in ("id", "name") else Runtime(f"<{value.type}>.{name}")
        if isinstance(value, Deployment) and name == "outputs":
            return value.outputs
        if isinstance(value, dict) and (safe or name in value):
            return value.get(name)
        raise BicepError(f"{self.path.name}: {held[1]} has no '{name}'")

    def _eval_call(self, names: dict[str, Any], function: str, arguments: list[Any]) -> Any:
        values = [self.evaluate(one, names) for one in arguments]
        known = getattr(self, "_call_" + function, None) or FUNCTIONS.get(function)
        if known is None:
            raise BicepError(f"{self.path.name}: the function {function}() is not known here")
        made = known(*values)
        runtime = isinstance(made, str) and any(isinstance(one, Runtime) for one in values)
        return Runtime(made) if runtime and function not in ("guid", "uniqueString") else made

    def _call_environment(self) -> Any:
        return {"resourceManager": self.cloud}

    def _call_subscription(self, given: str | None = None) -> Any:
        if given is not None:
            return Scope(given)
        own = self.scope.subscription
        return {"id": Scope(own).id, "subscriptionId": own, "tenantId": Runtime("<tenant>")}

    def _call_resourceGroup(self, *given: str) -> Any:  # noqa: N802 (its name in Bicep)
        if given:
            return Scope(given[0] if len(given) == 2 else self.scope.subscription, given[-1])
        return {"id": self.scope.id, "name": self.scope.group, "location": Runtime("<location of the group>")}

    def _call_resourceId(self, kind: str, *names: str) -> str:  # noqa: N802
        provider, *types = kind.split("/")
        path = "".join(f"/{one}/{name}" for one, name in zip(types, names, strict=True))
        return f"{self.scope.id}/providers/{provider}{path}"

    def _call_subscriptionResourceId(self, kind: str, name: str) -> str:  # noqa: N802
        return f"{Scope(self.scope.subscription).id}/providers/{kind}/{name}"

    def _call_loadJsonContent(self, name: str) -> Any:  # noqa: N802
        return json.loads((self.path.parent / name).read_text())


def deploy(parameters: Path, subscription: str, **options: Any) -> Deployment:
    """What a .bicepparam file asks for."""
    statements = read(parameters)
    (using,) = [one for one in statements if one.kind == "using"]
    path = (parameters.parent / using.value[1][0]).resolve()
    values = Deployment.__new__(Deployment)
    values.path, values.declared, values._known, values.used = parameters, {}, {}, set()
    given = {one.name: values.evaluate(one.value, {}) for one in statements if one.kind == "param"}
    return Deployment(path, given, Scope(subscription), **options)
