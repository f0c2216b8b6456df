"""Jinja templates from a checkpoint: sandboxed, bounded, and with the origin of every character known.

**Trust.** The literals of a template are compiled to :class:`~llmcore.trust.Tracked` strings, trusted
from end to end; all else (messages, tools, numbers, results of filters) is plain `str`. What joins
strings (output, `+`, `~`, `join`, blocks, macros) keeps the trust of each piece. See `trust.py`.

**Bounds.** The sandbox of Jinja keeps a template away from Python's internals but lets it run for ever
or fill the memory. Here every statement, call, filter, test and operator draws on a budget of
memory used and of time; what would multiply sizes behind its back (padding, wide formats, powers) is
refused.

Semantics otherwise follow Transformers' chat templates (`utils/chat_template_utils.py`): an
`ImmutableSandboxedEnvironment` with `trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`,
`strftime_now`, a `tojson` without HTML or ASCII escapes, and the tag `{% generation %}`.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import sys
import time
import types
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_environment

from llmcore.trust import Tracked, concat, marked, trusted

__all__ = ["render"]

# A render may use so many bytes, what it has freed again included, and so many seconds. Usual
# templates need thousandths of both.
_MAX_BYTES = 1 << 29
_MAX_SECONDS = 10.0
_MAX_TEMPLATE = 1 << 20
# The bytes that a statement counts for, an element of a list or a range of a Tracked, and, before its string
# exists, a character.
_STEP, _ELEMENT, _CHARACTER = 64, 64, 4
_MAX_INTEGER_BITS = 4096

_FILE = "<chat template>"


# ---------------------------------------------------------------------------------------------------
# Bounds


class _Budget:
    """What one render may still use."""

    def __init__(self) -> None:
        self.bytes = _MAX_BYTES
        self.deadline = time.monotonic() + _MAX_SECONDS

    def charge(self, size: int) -> None:
        self.bytes -= size
        if self.bytes < 0:
            raise SecurityError(f"rendering uses more than {_MAX_BYTES >> 20} MiB")
        if time.monotonic() > self.deadline:
            raise SecurityError(f"rendering takes more than {_MAX_SECONDS:.0f} seconds")


_budget: ContextVar[_Budget] = ContextVar("budget of the render that runs")


def _charge(size: int) -> None:
    _budget.get().charge(size)


def _size(text: str) -> int:
    """The bytes of a string and of its marks."""
    return sys.getsizeof(text) + (_ELEMENT * len(text._ranges) if isinstance(text, Tracked) else 0)


def _charged(value: Any) -> Any:
    """`value`, its size charged."""
    if isinstance(value, str):
        _charge(_STEP + _size(value))
    elif isinstance(value, list | tuple | dict | set):
        _charge(_STEP + _ELEMENT * len(value))
    else:
        _charge(_STEP)
    return value


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test whose result is charged."""

    @functools.wraps(function)  # keeps the mark that says whether the environment is its first argument
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return _charged(function(*args, **kwargs))

    return guarded


_WIDE = re.compile(r"\d{4}|\*|\{[^{}]*\{")


def _check_format(pattern: str) -> None:
    """Refuse a format that can pad to an unbounded width: four digits, `%*d`, or `{:{}}`."""
    if _WIDE.search(pattern):
        raise SecurityError(f"the format {str(pattern)[:40]!r} may be too wide")


# ---------------------------------------------------------------------------------------------------
# Filters and functions of a template


def _join(separator: str, items: Iterable[object]) -> Tracked:
    """`separator.join(items)`, with the trust of each piece."""
    pieces: list[str] = []
    for item in items:
        pieces += [str(item)] if not pieces else [separator, str(item)]
        _charge(_STEP + _size(pieces[-1]) + _size(separator))
    return concat(pieces)


@pass_environment
def _join_filter(
    environment: jinja2.Environment, value: Iterable[object], d: object = "", attribute: Any = None
) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return _join(str(d), value)


def _replace(text: object, old: object, new: object, count: int | None = None) -> str:
    """`str.replace`, charged before the memory is taken."""
    text, old, new = str(text), str(old), str(new)
    times = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    _charge(_CHARACTER * (len(text) + times * len(new)))
    return text.replace(old, new, times)


def _indent(s: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(s)
    lines = text.count("\n") + 1
    _charge(_CHARACTER * (len(text) + lines * (width if isinstance(width, int) else len(width))))
    return jinja2.filters.do_indent(text, width, first, blank)


def _format(pattern: str, *args: object, **kwargs: object) -> str:
    _check_format(pattern)
    return jinja2.filters.do_format(pattern, *args, **kwargs)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    width = indent if isinstance(indent, int) else len(indent or "")
    if width > 16:
        raise SecurityError(f"tojson: found an indent of {indent}, expected at most 16")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(format: str) -> str:
    _check_format(format)
    return datetime.datetime.now().strftime(format)


class _Namespace(Namespace):
    """Jinja's namespace without names of Python's own, which could pass for methods of its protocols."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a keyword
        names = dict(*args[1:], **kwargs)
        for name in names:
            _check_name(name)
        Namespace.__init__(args[0], names)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"namespace: found the name {name!r}, expected one without a leading underscore")


# ---------------------------------------------------------------------------------------------------
# The environment


class _Generator(CodeGenerator):
    """Compiles literals to trusted strings, and a charge into every statement."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.literal({value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(f"environment.literal({node.as_const(frame.eval_ctx)!r})")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(str, (")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write(")))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("environment.charged(")
        super().visit_Compare(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        copies = isinstance(node.arg, nodes.Slice)
        self.write("environment.charged(" if copies else "(")
        super().visit_Getitem(node, frame)
        self.write(")")

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        for node in nodes:
            self.writeline("environment.charged(None)")
            super().blockvisit([node], frame)

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        # Expressions of constants run with everything else, within the budget.
        if not isinstance(node, nodes.TemplateData | nodes.Const):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.literal({''.join(map(str, group))!r})"


class _Generation(Extension):
    """The tag `{% generation %}`, with which templates mark what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("marked_body"), [], [], body).set_lineno(line)

    @staticmethod
    def marked_body(caller: Callable[[], str]) -> Tracked:
        """What the body writes."""
        return marked(caller())


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset(["+", "*", "**", "%"])
    # Methods that pad or leave text; `join` and `replace` are charged in `call`.
    refused_methods = frozenset(
        ["center", "encode", "expandtabs", "ljust", "rjust", "translate", "zfill", "maketrans"]
    )
    refused_filters = (
        "batch", "center", "filesizeformat", "pprint", "random", "slice", "urlize", "wordwrap", "xmlattr",
    )  # fmt: skip

    literal = staticmethod(trusted)
    charged = staticmethod(_charged)

    def __init__(self) -> None:
        # Not optimised: folding constants would run filters outside of the budget.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], optimized=False
        )
        self.filters |= {
            "format": _format, "indent": _indent, "join": _join_filter, "replace": _replace,
            "tojson": _tojson,
        }  # fmt: skip
        for name in self.refused_filters:
            del self.filters[name]
        tables: tuple[dict[str, Any], dict[str, Any]] = (self.filters, self.tests)
        for table in tables:
            table |= {name: _guarded(function) for name, function in table.items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception, "strftime_now": _strftime_now, "namespace": _Namespace,
        }  # fmt: skip

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """What joins the pieces of a block, a macro, `~`, and the whole output."""
        kept = []
        for piece in pieces:
            _charge(_STEP + _size(piece))
            kept.append(piece)
        return concat(kept)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """No attributes of numbers (`to_bytes` makes memory), and no padding of text."""
        if isinstance(obj, int | float | complex):
            return False
        if isinstance(obj, str) and attr in self.refused_methods:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, sandboxed, for a pattern of bounded width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def call(
        __self, __context: Context, __obj: Any, *args: Any, **kwargs: Any
    ) -> Any:  # __self may be a keyword
        """Call a function of the template; what it makes is charged."""
        if isinstance(__obj, types.MethodType | types.BuiltinMethodType) and isinstance(__obj.__self__, str):
            if __obj.__name__ == "join":
                return _join(__obj.__self__, *args)
            if __obj.__name__ == "replace":
                return _replace(__obj.__self__, *args)
        return _charged(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%`, charged before they take memory."""
        if operator == "+":
            _charged(left)
            _charged(right)
        elif operator != "%":
            self._charge_product(operator, left, right)
        elif isinstance(left, str):
            _check_format(left)
            return _charged(super().call_binop(context, operator, left, right))
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def _charge_product(operator: str, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * right
            if bits > _MAX_INTEGER_BITS:
                raise SecurityError(f"{operator}: found numbers whose result has {bits} bits")
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                _charge(_ELEMENT * len(sequence) * max(times, 0))


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    environment = _Environment()
    code = environment.compile(source, filename=_FILE)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def render(source: str, variables: Mapping[str, Any]) -> Tracked:
    """Render the template `source`; :func:`spans` of the result tells the template's text from the rest,
    :func:`marks` what `{% generation %}` encloses.

    `variables` are plain data (dict, list, str, numbers, None); a :class:`Tracked` in them keeps its trust.

    Raises:
        ValueError: the template is broken, refuses the input (`raise_exception`), reaches for what the
            sandbox forbids, or exceeds its bounds.
    """
    if len(source) > _MAX_TEMPLATE:
        raise ValueError(f"chat template: found {len(source)} characters, expected at most {_MAX_TEMPLATE}")
    token = _budget.set(_Budget())
    try:
        result = _compiled(source).render(variables)
        return result if isinstance(result, Tracked) else Tracked(result)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"chat template, line {error.lineno}: {error.message}") from error
    except Exception as error:  # whatever a template does to its input: None + "x", x[0] of nothing
        raise ValueError(f"chat template{_line(error)}: {_message(error)}") from error
    finally:
        _budget.reset(token)


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"


def _line(error: Exception) -> str:
    """The line of the template at which `error` arose. Jinja rewrites tracebacks to its own lines."""
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _FILE:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return "" if line is None else f", line {line}"
