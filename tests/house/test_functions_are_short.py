"""No native function is a hall: at most 60 lines, and blocks nest at most 4 deep."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
NATIVE = sorted(path for path in CSRC.rglob("*") if path.suffix in {".cpp", ".h", ".cu", ".cuh"})
MAX_LINES, MAX_DEPTH = 60, 4


class Function(NamedTuple):
    """A function with a body: its name, the lines from its head to the closing brace, and how deep its blocks nest."""

    name: str
    line: int
    lines: int
    depth: int


def _code(text: str) -> str:
    """The text without comments, strings and preprocessor lines, on the same lines."""

    def blank(match: re.Match[str]) -> str:
        return '""' if match[0][0] in "\"'" else "\n" * match[0].count("\n")

    pieces = (
        r"//[^\n]*",
        r"(?s:/\*.*?\*/)",
        r'"(?:\\.|[^"\\\n])*"',
        r"'(?:\\.|[^'\\\n])+'",
        r"(?m:^[ \t]*#(?:.*\\\n)*.*$)",
    )
    return re.sub("|".join(pieces), blank, text)


def _kind(head: str, inside: bool) -> str:
    """What the brace after `head` opens: a scope, a function, a block of its body, or an initialiser."""
    if re.match(r"(template\s*<.*>\s*)?(namespace|struct|class|enum|union|extern)\b(?!.*\)$)", head, re.DOTALL):
        return "scope"
    if not inside and "(" in head:
        return "function"
    block = re.search(r"(\)|\b(const|noexcept|else|do|mutable)|->\s*[\w:<>*& ]+)$", head)
    return "block" if block else "initialiser"


def functions(text: str) -> list[Function]:
    """Every function of a file that has a body; lambdas count to the function around them."""
    found: list[Function] = []
    open_braces: list[str] = []
    head, line, start, depth, name = "", 1, 0, 0, ""
    for character in _code(text):
        line += character == "\n"
        if character == "{":
            kind = _kind(head.strip(), "function" in open_braces)
            if kind == "function":
                name = (re.findall(r"([\w~]+)\s*\(", head) or ["operator"])[-1 if "__launch_bounds__" in head else 0]
                start, depth = line - head.lstrip().count("\n"), 0
            open_braces.append(kind)
            depth = max(depth, open_braces.count("block"))
        elif character == "}" and open_braces.pop() == "function":
            found.append(Function(name, start, line - start + 1, depth))
        head = "" if character in "{};" else head + character
    return found


def halls(text: str) -> list[str]:
    """One line for each function that is too long, or nests too deep."""
    return [
        f"line {each.line}: {each.name} has {each.lines} lines, at most {MAX_LINES}, and nests {each.depth} deep, "
        f"at most {MAX_DEPTH}"
        for each in functions(text)
        if each.lines > MAX_LINES or each.depth > MAX_DEPTH
    ]


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: str(path.relative_to(CSRC)))
def test_functions_are_short(path: Path) -> None:
    assert not halls(path.read_text())


def test_a_hall_is_found() -> None:
    long = "int f(int x) {\n" + "  x += 1;\n" * 60 + "  return x;\n}\n"
    assert halls(long) == ["line 1: f has 63 lines, at most 60, and nests 0 deep, at most 4"]
    deep = "void g() {" + "if (a) {" * 4 + "each([&](int i) { h(i); });" + "}" * 4 + "}"
    assert [each[3:] for each in functions(deep)] == [(5,)]
    assert halls(deep)


def test_functions_are_found() -> None:
    """Text, comments, macros and initialisers are no blocks, a class is none either, and kernels have their names."""
    text = """
    #define F(x) { x; } \\
      { }
    struct A {
      int a[2] = {1, 2};
      int b() const { return "}{"[0]; }  // {
    };
    template <class T>
    __global__ void __launch_bounds__(128, 1)
        kernel(const A a) {
      for (int i = 0; i < 2; ++i) a.b();
    }
    """
    assert functions(text) == [Function("b", 6, 1, 0), Function("kernel", 8, 5, 0)]
    names = [each.name for path in NATIVE for each in functions(path.read_text())]
    assert len(names) > 300
    assert "target_attention_fwd_kernel" in names
