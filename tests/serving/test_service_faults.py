"""The service in a process: killed and started again, overloaded, beside clients that are slow, and on Redis."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serve import load
from serve.store import Event, RedisStore, SQLiteStore, Store, open_store
from service_process import ITEMS, free_port, running, write_checkpoint


def _check_store(store: Store) -> None:
    """Events count once for each user, in the order in which they came, and are read from a place on."""
    first = [Event(user, f"e{n}", n, n % 2, 100 - n) for n in range(6) for user in (1, 2)]
    assert store.append(first) == 12
    assert store.append([*first[3:], Event(1, "e9", 9, 0, 9), Event(1, "e9", 8, 0, 9)]) == 1
    one, two, nobody = store.read([(1, 0), (2, 0), (3, 0)], 100)
    assert one[:, 1:].tolist() == [[n, n % 2, 100 - n] for n in range(6)] + [[9, 0, 9]]
    assert len(two) == 6
    assert nobody.shape == (0, 4)
    place = int(one[4, 0])
    behind, last = store.read([(1, place), (2, 0)], 3)
    assert behind.tolist() == one[5:].tolist()
    assert last.tolist() == two[-3:].tolist()
    assert store.read([(1, int(one[-1, 0]))], 3)[0].shape == (0, 4)
    store.close()


def test_sqlite(tmp_path: Path) -> None:
    _check_store(SQLiteStore(tmp_path / "events"))
    again = SQLiteStore(tmp_path / "events")
    assert len(again.read([(1, 0)], 100)[0]) == 7


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[str]:
    """The URL of a Redis of this test's own, which writes every command to its disk before it answers."""
    program = shutil.which("redis-server")
    assert program is not None, "redis-server is not installed: apt-get install redis-server"
    port = free_port()
    options = f"--port {port} --bind 127.0.0.1 --appendonly yes --appendfsync always --dir {tmp_path}"
    process = subprocess.Popen([program, *options.split()], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}/0"
    process.kill()
    process.wait()


@pytest.mark.slow  # so that `make peers` alone runs it, which installs redis-server
@pytest.mark.peers
def test_redis(redis_server: str) -> None:
    _check_store(RedisStore(redis_server))


@pytest.mark.slow
@pytest.mark.peers
def test_redis_reads_no_more_than_it_is_asked_for(redis_server: str) -> None:
    """Another server stores meanwhile: events that come between the length and the rows wait for the next read."""
    store, writer, done = RedisStore(redis_server), RedisStore(redis_server), threading.Event()
    writer.append([Event(1, f"{n}", n, 1, n) for n in range(100)])

    def write() -> None:
        n = 100
        while not done.is_set():
            writer.append([Event(1, f"{n + i}", n + i, 1, n + i) for i in range(20)])
            n += 20

    thread = threading.Thread(target=write)
    thread.start()
    place = 0
    for _ in range(300):
        [found] = store.read([(1, 0)], 40)
        assert len(found) == 40
        [found] = store.read([(1, place)], 10**6)
        assert found[:, 0].tolist() == list(range(place + 1, place + 1 + len(found)))
        assert (found[:, 1] == found[:, 0] - 1).all()
        place = int(found[-1, 0]) if len(found) else place
    done.set()
    thread.join()
    assert [rows.shape for rows in store.read([(1, 0), (2, 0)], 0)] == [(0, 4), (0, 4)]
    store._redis.flushall()
    assert store.read([(1, place)], 40)[0].shape == (0, 4)
    writer.append([Event(1, "again", 7, 1, 9)])
    assert store.read([(1, place)], 40)[0].tolist() == [[1, 7, 1, 9]]
    assert store.claim("a") == "a" == writer.claim("b")


@pytest.mark.slow  # so that `make peers` alone runs it, which installs redis-server
@pytest.mark.peers
def test_two_services_share_users(tmp_path: Path, redis_server: str) -> None:
    arguments = "--checkpoint", write_checkpoint(tmp_path / "ranker.pt"), "--store", redis_server
    query = {"user": 1, "candidates": [1, 2, 3], "time": 50_000, "deadline_ms": 60_000}
    with running(*arguments) as (one, _), running(*arguments) as (two, _):
        before = one.post("/score", json=query).json()
        for n in range(5):
            event = {"user": 1, "event_id": str(n), "item": n, "time": n}
            assert (one, two)[n % 2].post("/events", json={"events": [event]}).status_code == 200
        after = [each.post("/score", json=query).json() for each in (one, two)]
    assert after[0]["scores"] == pytest.approx(after[1]["scores"], abs=1e-6)
    assert after[0] != before


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    """What was acknowledged is there once, whatever was sent twice, and whenever the service died."""
    arguments = "--checkpoint", write_checkpoint(tmp_path / "ranker.pt"), "--store", tmp_path / "events"
    acknowledged, sent = set[str](), 0
    for life in range(3):
        with running(*arguments) as (client, process):
            threading.Timer(0.5 + 0.3 * life, process.kill).start()
            try:
                while True:
                    ids = [f"{max(0, sent - 2) + n}" for n in range(5)]  # two of them were sent before
                    sent += 3
                    events = [{"user": 2, "event_id": each, "item": 1, "time": 5} for each in ids]
                    if client.post("/events", json={"events": events}).status_code == 200:
                        acknowledged |= set(ids)
                    client.post("/score", json={"user": 2, "candidates": [3], "deadline_ms": 60_000})
            except httpx.TransportError:
                process.wait()
    store = open_store(str(tmp_path / "events"))
    assert isinstance(store, SQLiteStore)
    stored = [each for (each,) in store._reader.execute("SELECT event_id FROM events WHERE user = 2")]
    assert len(acknowledged) > 20
    assert len(stored) == len(set(stored))
    assert acknowledged <= set(stored)


@pytest.mark.slow
def test_overload_and_slow_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some answers come and the rest is refused at once; who sends a byte a second is not waited for."""
    arguments = "--checkpoint", write_checkpoint(tmp_path / "ranker.pt"), "--store", tmp_path / "events"
    # Where a batch waits for others, more than four requests wait at once however slow this machine is to send them.
    with running(*arguments, "--max-jobs", 4, "--max-wait-ms", 200) as (client, _):
        slow = [socket.create_connection((client.base_url.host, client.base_url.port)) for _ in range(20)]
        for each in slow:
            each.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        flags = f"--url {client.base_url} --rate 300 --seconds 3 --users 20 --events 1001"
        flags += f" --items {ITEMS} --candidates 50"
        load.main([*flags.split(), "--out", str(tmp_path / "latency.png")])
        printed = capsys.readouterr().out
        assert client.get("/health").json()["users"] == 20
        assert client.get("/health").status_code == 200
        answers = [each.recv(100).split(b"\r\n")[0] for each in slow]
        assert set(answers) == {b"HTTP/1.1 408 Request Timeout"}
        assert client.post("/score", json={"user": 1, "candidates": [1], "deadline_ms": 60_000}).status_code == 200
    counts = dict(part.strip("{}' ").split("': ") for part in printed.split("; ")[-1].strip().split(", "))
    assert int(counts["score 200"]) > 0
    assert int(counts["score 429"]) > 0
    assert set(counts) == {"score 200", "score 429", "events 200"} | (
        set(counts) & {"events 429", "events 504", "score 504"}
    ), printed
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
