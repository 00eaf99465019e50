"""No call of the package, the examples, prove, soak or what watches over a GPU waits for others without a limit."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("stca", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
FILES += [ROOT / "tools" / name for name in ("prove.py", "soak.py", "soak_extremes.py", "soak_work.py")]
FILES += [ROOT / "tools" / name for name in ("on_gpu.py", "progress.py")]  # whose processes may hang in the driver
# By the last part of its name: how a call says how long it waits, by keyword or by the place of an argument.
LIMITED = {
    "run": "timeout",
    "check_output": "timeout",
    "check_call": "timeout",
    "communicate": "timeout",
    "init_process_group": "timeout",
    "rendezvous": "timeout",
    "urlopen": "timeout",
    "AsyncClient": "timeout",
    "connect": "timeout",
    "from_url": "socket_timeout",
    "DataLoader": "timeout",
}
OWNERS = {"run": "subprocess", "check_output": "subprocess", "check_call": "subprocess", "connect": "sqlite3"}
ALWAYS = {"Popen"}  # and no block over one waits with a limit when it ends
BARE = {"join", "wait", "get", "result", "acquire"}  # without any argument they wait for ever
# What waits for work of this process, whose own waits are limited.
ALLOWED = {
    "stca/data/git_output.py: subprocess.Popen(command, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE, "
    "stderr=complaints, env=environment)": "each read and the end are waited for with a limit",
    "tools/prove.py: subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=kept, stderr=kept, "
    "start_new_session=True)": "its output is a file, and its end is waited for with a limit",
    "tools/on_gpu.py: Popen(command, cwd=ROOT, env=settings, stdout=PIPE, stderr=STDOUT, errors='replace', "
    "start_new_session=True)": "its end has a limit, and so has the end of the thread that reads its output",
    "tools/progress.py: subprocess.Popen(command(end - time.monotonic()))": "it is polled, and its end has a limit",
    "examples/serve/batcher.py: self._arrived.wait()": "inside asyncio.wait_for, or with nothing to do",
}


def unlimited(path: Path, text: str) -> list[str]:
    """Calls that may wait for ever, each by file and code."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        keywords = {each.arg for each in node.keywords}
        bare = name in BARE and isinstance(node.func, ast.Attribute) and not node.args and not keywords
        late = name in LIMITED and OWNERS.get(name, owner) == owner and not keywords & {LIMITED[name], None}
        if bare or late or name in ALWAYS:
            found.append(f"{path}: {ast.unparse(node)}")
    return found


def test_every_wait_has_a_limit() -> None:
    found = {each for path in FILES for each in unlimited(path.relative_to(ROOT), path.read_text())}
    assert found == set(ALLOWED)


def test_waits_without_a_limit_are_found() -> None:
    planted = (
        "thread.join()",
        "subprocess.run(['git'])",
        "torch.distributed.init_process_group('gloo')",
        "queue.get()",
        "DataLoader(data, num_workers=2)",
        "sqlite3.connect('x')",
        "subprocess.Popen(['git'])",
    )
    limited = (
        "thread.join(5)",
        "' '.join(names)",
        "subprocess.run(['git'], timeout=5)",
        "settings.get('x')",
        "sqlite3.connect('x', timeout=1)",
    )
    text = "\n".join((*planted, *limited))
    assert unlimited(Path("x.py"), text) == [f"x.py: {line}" for line in planted]
