"""The memory on disk: each observation once, nothing lost, whoever else writes at the same time."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer.cli import main
from observer.errors import ObserverError
from observer.memory.as_of import as_of
from observer.memory.diff import Timeline, remember
from observer.memory.facts import Fact, OperationKind
from observer.memory.said import Said
from observer.memory.store import SCHEMA_VERSION, Store
from observer.observation import Observation
from observer.paths import PROJECT_ROOT
from observer.turns.after_model import read_extraction
from tests.memory.test_diff import DAY, OBSERVATIONS, PASTS, said

JOB = said("User WORKS_AT Siemens ongoing", "User LIVES_IN Porto ongoing")
CHANGE = said("User WORKS_AT Siemens completed", "User WORKS_AT Bosch ongoing", day=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "memory.sqlite"


def by_id(facts: list[Fact]) -> dict[str, Fact]:
    return {fact.id: fact for fact in facts}


def test_a_change_of_job_ends_one_fact_adds_the_other_and_keeps_both(path: Path) -> None:
    with Store(path) as store:
        store.apply(JOB, "1")
        assert [o.kind for o in store.apply(CHANGE, "2")] == [OperationKind.INVALIDATE, OperationKind.ADD]
    with Store(path) as store:  # it is on the disk
        assert {fact.object for fact in store.known()} == {"Porto", "Bosch"}
        assert {fact.object for fact in store.known(is_current=False)} == {"Porto", "Bosch", "Siemens"}
        assert [fact.object for fact in store.known("BOSCH")] == ["Bosch"]


def test_it_holds_exactly_what_diff_says(path: Path) -> None:
    observations = [JOB, CHANGE, said("Ana CHILD_OF User ongoing 2019..", day=4), said("User DISLIKES tea ongoing"),
                    said("User LIKES tea ongoing", "User LIVES_IN Lisbon ongoing 2026..", day=9)]  # fmt: skip
    timeline = Timeline()
    with Store(path) as store:
        for number, observation in enumerate(observations):
            assert store.apply(observation, str(number)) == timeline.tell(Said.of(observation))
        assert store.known(is_current=False) == timeline.facts


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_it_comes_to_the_same_in_whatever_order_it_reads(data: st.DataObject) -> None:
    """Facts, history, and what held on a day, by ones or by threes; and what it reads to compare with is enough."""
    observations = data.draw(st.lists(OBSERVATIONS | PASTS, max_size=6, unique_by=lambda one: one.at))
    in_time = sorted(enumerate(observations), key=lambda pair: str(pair[1].at))
    current: dict[str, Fact] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        Store(Path(folder) / "read.sqlite") as read,
        Store(Path(folder) / "said.sqlite") as in_order,
    ):
        unread = [one.model_copy(update={"id": str(number)}) for number, one in data.draw(st.permutations(in_time))]
        while unread:
            size = data.draw(st.integers(1, 3))
            for operation in read.apply_all(unread[:size]):
                if operation.is_stored:
                    current[operation.fact.id] = operation.fact
            del unread[:size]
        for number, observation in in_time:
            in_order.apply(observation, str(number))
        facts = remember(map(Said.of, observations))
        assert read.known(is_current=False) == in_order.known(is_current=False) == facts
        assert sorted(read.history(), key=str) == sorted(in_order.history(), key=str)
        day = DAY.date() + timedelta(days=data.draw(st.integers(-1, 5)))
        assert as_of(read, day) == as_of(in_order, day)
        assert {id: fact for id, fact in current.items() if fact.is_current} == by_id(read.known())


def test_what_was_said_at_one_moment_counts_in_the_order_in_which_it_is_read(path: Path) -> None:
    with Store(path) as store:
        for home in ("Oslo", "Rome"):
            store.apply(said(f"User LIVES_IN {home} ongoing", day=2), home)
        store.apply(said("User LIVES_IN Lima ongoing", day=1), "Lima")
        assert [fact.object for fact in store.known()] == ["Rome"]
        assert [event.source for event in store.history()] == ["Lima", "Oslo", "Oslo", "Rome", "Rome"]


def test_facts_of_one_second_come_in_the_order_of_their_moments(path: Path) -> None:
    observations = [said("User LIKES tea ongoing"), said("User LIKES jazz ongoing")]
    late = [one.model_copy(update={"at": DAY + timedelta(milliseconds=n)}) for n, one in enumerate(observations)]
    with Store(path) as store:
        for number, observation in enumerate(late):
            store.apply(observation, str(number))
        assert [fact.object for fact in store.known()] == ["tea", "jazz"]
        assert as_of(store, DAY.date()).known_then == as_of(store, DAY.date()).known_now == store.known()


@pytest.mark.parametrize("order", [1, -1], ids=["oldest first", "newest first"])
def test_it_takes_any_number_of_observations_at_once(path: Path, order: int) -> None:
    """Of more topics than SQLite takes values in one question, and of names at whose NUL it ends a text of JSON."""
    states = [
        [said(f"User HAS_PET pet\0{n} {state}", day=day).model_copy(update={"id": f"{n} {state}"}) for n in range(60)]
        for day, state in enumerate(["ongoing", "completed"])
    ]
    with Store(path) as store:
        store._database.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 50)
        for observations in states[::order]:
            assert len(store.apply_all(observations)) == 60
        assert store.known(is_current=False) == remember(map(Said.of, states[0] + states[1]))


def test_threads_may_share_it(path: Path) -> None:
    with Store(path) as store, ThreadPoolExecutor(8) as pool:
        observations = [said(f"User LIVES_IN town{n} ongoing", day=n) for n in range(40)]
        done = list(pool.map(store.apply, observations * 2, [str(n) for n in range(40)] * 2))
        assert len([operations for operations in done if operations]) == 40 and len(store.history()) == 40 + 39
        assert [fact.object for fact in store.known()] == ["town39"]
        assert len(store.known(is_current=False)) == 40


def test_attributes_of_entities_are_kept_and_the_last_told_wins(path: Path) -> None:
    def told(**attributes: str) -> Observation:
        seen = said("User SIBLING_OF Ana ongoing")
        entities = [seen.entities[0], seen.entities[1].model_copy(update={"attributes": attributes})]
        return seen.model_copy(update={"entities": entities})

    with Store(path) as store:
        store.apply(told(role="nurse", relation="sister"), "1")
        store.apply(told(role="doctor"), "2")
        assert store.attributes() == {"user": {}, "ana": {"role": "doctor", "relation": "sister"}}


def test_a_source_counts_once(path: Path) -> None:
    with Store(path) as store:
        assert store.apply(JOB, "1") and store.has("1")
        assert store.apply(CHANGE, "1") == []
        assert {fact.object for fact in store.known()} == {"Siemens", "Porto"}


def test_history_tells_what_happened_when_and_where_it_was_said(path: Path) -> None:
    with Store(path) as store:
        store.apply(JOB, "chat-1")
        store.apply(JOB, "chat-1, told again")
        store.apply(CHANGE, "chat-2")
        events = store.history("siemens")
        assert [(e.seen_at, e.source, str(e.operation.kind), e.operation.fact.is_current) for e in events] == [
            (DAY, "chat-1", "ADD", True),
            (DAY + timedelta(days=3), "chat-2", "INVALIDATE", False),
        ]
        assert len(store.history()) == 4
        assert store.history("nobody") == []
        assert store.sources_of()[events[0].operation.fact.id] == ["chat-1", "chat-2"]


def test_a_new_file_and_its_side_files_are_for_their_owner_alone(path: Path) -> None:
    with Store(path) as store:
        store.apply(JOB, "1")
        files = list(path.parent.iterdir())
        assert {file.name for file in files} == {"memory.sqlite", "memory.sqlite-wal", "memory.sqlite-shm"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_write_that_fails_half_way_leaves_nothing(path: Path) -> None:
    with Store(path) as store:
        store.apply(JOB, "1")
        store._database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON facts WHEN NEW.object = 'Bosch' BEGIN SELECT RAISE(FAIL, 'full'); END"
        )
        with pytest.raises(ObserverError, match="full"):
            store.apply(CHANGE, "2")
        assert not store.has("2") and {fact.object for fact in store.known()} == {"Siemens", "Porto"}
        store._database.execute("DROP TRIGGER full")
        assert len(store.apply(CHANGE, "2")) == 2


def test_two_programs_that_write_at_once_lose_and_repeat_nothing(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from observer.memory.store import Store\n"
        "from tests.memory.test_diff import said\n"
        "with Store(Path(sys.argv[1])) as store:\n"
        "    print('ready', flush=True); input()\n"
        "    for n in range(60):\n"
        "        store.apply(said(f'User LIVES_IN town{n} ongoing', 'User LIKES tea ongoing', day=n), str(n))\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    programs = [
        subprocess.Popen(command, cwd=PROJECT_ROOT, stdin=-1, stdout=-1, stderr=-1, text=True) for _ in range(2)
    ]
    for program in programs:
        assert program.stdout is not None and program.stdout.readline() == "ready\n", program.communicate()[1]
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
    for program in programs:
        assert program.wait(timeout=600) == 0
        program.communicate()
    with Store(path) as store:
        assert len(store.known(is_current=False)) == 61
        assert {fact.object for fact in store.known()} == {"tea", "town59"}
        assert len(store.history()) == 61 + 59


def test_a_file_that_is_no_memory_is_refused_untouched(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("these are notes, and long enough to have a database's header" * 9)
    with pytest.raises(ObserverError, match=rf"^{path}: no memory .*; name another file$"):
        Store(path)
    other = path.with_name("other.sqlite")
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE photos (id)")
    before = other.read_bytes()
    with pytest.raises(ObserverError, match="a database of another program"):
        Store(other)
    assert other.read_bytes() == before
    with pytest.raises(ObserverError, match="check the path"):
        Store(path.parent)
    with pytest.raises(ObserverError, match="no such memory"):
        Store(path.with_name("missing.sqlite"), must_exist=True)


@pytest.mark.parametrize("where", [b"Porto", b"ends TEXT"], ids=["of a fact", "of a table"])
def test_damaged_text_is_one_line_that_does_not_quote_it(path: Path, where: bytes) -> None:
    with Store(path) as store:
        store.apply(JOB, "1")
    path.write_bytes(path.read_bytes().replace(where, where[:-1] + b"\xff"))
    with pytest.raises(ObserverError, match="decode") as refused, Store(path) as store:
        store.known()
    assert not any(quoted in str(refused.value) for quoted in ("Port", "CREATE", "\n"))


@pytest.mark.parametrize("arguments", [["FILE", "--about", "\udcff"], ["a" * 300]], ids=["a name", "a path"])
def test_what_cannot_be_a_name_or_a_path_is_one_line(
    path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Store(path).close()
    assert main(["memory", "show", *(str(path) if one == "FILE" else one for one in arguments)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_memory_of_another_version_is_one_line(path: Path) -> None:
    with Store(path) as store:
        store._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ObserverError, match=f"a memory of version {SCHEMA_VERSION + 1}, this program reads") as refused:
        Store(path)
    assert "\n" not in str(refused.value)


def test_a_memory_that_stays_locked_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("observer.memory.store.BUSY_TIMEOUT_S", 0.1)
    with Store(path) as store, Store(path) as other:
        other._database.execute("BEGIN IMMEDIATE")
        with pytest.raises(ObserverError, match="another program has been writing"):
            store.apply(JOB, "1")
        other._database.execute("ROLLBACK")
        assert store.apply(JOB, "1")


def test_what_is_forgotten_is_over_and_can_be_told_anew(path: Path) -> None:
    with Store(path) as store:
        store.apply(JOB, "1")
        (job,) = store.known("Siemens")
        ended = store.forget(job.id)
        assert (ended.state, ended.id) == ("forgotten", job.id) and store.known("Siemens") == []
        assert store.forget(job.id) == ended  # it is over: nothing more happens
        assert [str(e.operation.reason) for e in store.history("Siemens")] == ["new", "forgotten"]
        assert store.apply(JOB, "1") == []  # the same exchange tells nothing new
        day = (datetime.now(UTC) - DAY).days + 2
        assert [o.kind for o in store.apply(said("User WORKS_AT Siemens ongoing", day=day), "2")] == ["ADD"]
        with pytest.raises(ObserverError, match=r"no fact has the id 'nonsense'; .* --all --json"):
            store.forget("nonsense")


@pytest.mark.parametrize("order", [("Porto", "Oslo"), ("Oslo", "Porto")])
def test_what_is_forgotten_stays_so_whatever_older_is_read_afterwards(path: Path, order: tuple[str, ...]) -> None:
    """The older home ends the first stay in Porto, so that what was forgotten is the second."""
    later = {"Oslo": said("User LIVES_IN Oslo ongoing", day=1), "Porto": said("User LIVES_IN Porto ongoing", day=2)}
    with Store(path) as store:
        store.apply(JOB, "1")
        store.forget(store.known("Porto")[0].id)
        for home in order:
            store.apply(later[home], home)
        states = [(f.object, f.state) for f in store.known(is_current=False) if f.predicate == "LIVES_IN"]
        assert states == [("Porto", "superseded"), ("Oslo", "superseded"), ("Porto", "forgotten")]
        assert store.known(is_current=False) == remember(store.told())


def test_what_is_forgotten_stays_so_where_older_exchanges_show_it_to_be_a_plan(path: Path) -> None:
    with Store(path) as store:
        store.apply(said("User DOES yoga ongoing"), "1")
        store.forget(store.known("yoga")[0].id)
        store.apply(said("User DOES yoga completed", "User DOES yoga future", day=1), "2")
        assert [fact.state for fact in store.known("yoga", is_current=False)] == ["completed", "forgotten"]


def test_what_had_given_way_to_a_deleted_fact_leaves_a_plan_of_the_same_exchange(path: Path) -> None:
    with Store(path) as store:
        store.apply(said("User LIVES_IN Porto ongoing"), "1")
        store.apply(said("User LIVES_IN Lisbon ongoing", "User LIVES_IN Porto future", day=1), "2")
        before = store.known("Porto", is_current=False)
        assert [fact.state for fact in before] == ["superseded", "future"]
        store.forget(store.known("Lisbon")[0].id, delete=True)
        assert store.known(is_current=False) == before


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_deleted_takes_nothing_else_with_it(data: st.DataObject) -> None:
    observations = data.draw(st.lists(OBSERVATIONS, min_size=1, max_size=4))
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "memory.sqlite") as store:
        store.apply_all(one.model_copy(update={"id": str(number)}) for number, one in enumerate(observations))
        for fact in data.draw(st.permutations(before := store.known(is_current=False)))[:1]:
            store.forget(fact.id, delete=True)
            assert store.known(is_current=False) == [other for other in before if other.key != fact.key]
            assert store.known(is_current=False) == remember(store.told())


def test_what_is_deleted_leaves_no_byte_behind(path: Path) -> None:
    """Two times of one triple, its history, and what the observations say of it; all else stays."""
    with Store(path) as store:
        for number in range(40):  # more than one page
            store.apply(said(f"User LIKES thing{number} ongoing", day=number), f"filler-{number}")
        store.apply(JOB, "1")
        store.apply(CHANGE, "2")
        store.apply(said("User WORKS_AT Siemens ongoing", "Ana WORKS_AT Bosch ongoing", day=50), "3")
        _, fault = read_extraction('{"entities":[{"name":"Siemens","type":')  # nothing of it is whole
        store.apply(said(day=51).model_copy(update={"fault": fault}), "4")
        before = {fact.id: fact for fact in store.known(is_current=False) if fact.object != "Siemens"}
        jobs = store.known("siemens", is_current=False)
        assert len(jobs) == 2
        store.forget(jobs[0].id, delete=True)
        assert by_id(store.known(is_current=False)) == before
        assert store.history("siemens") == [] and len(store.history("bosch")) == 2
        assert "siemens" not in store.attributes()
        assert [b"Siemens" in file.read_bytes() for file in path.parent.iterdir()] == [False] * 3
        assert store.apply(JOB, "1") == [] and store.known("Siemens") == []


def test_what_is_deleted_leaves_no_copy_behind(path: Path) -> None:
    """Where SQLite shares records out between pages, the old places keep them; here it does so to one that goes."""
    draw = random.Random(125)
    with Store(path) as store:
        for number in range(40):
            job, state = draw.choice(["Siemens", "Bosch"]), draw.choice(["ongoing", "completed", "future"])
            store.apply(said(f"User WORKS_AT {job} {state}", day=draw.randrange(9)), str(number))
        store.forget(store.known("Siemens", is_current=False)[0].id, delete=True)
        assert [b"siemens" in file.read_bytes().lower() for file in path.parent.iterdir()] == [False] * 3
        facts, history = store.known(is_current=False), store.history()
        assert facts == remember(store.told())
    with Store(path) as store:
        assert (store.known(is_current=False), store.history()) == (facts, history)


def test_the_command_forgets(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(path) as store:
        store.apply(JOB, "1")
        (job,), (home,) = store.known("Siemens"), store.known("Porto")
    assert main(["memory", "forget", str(path), job.id]) == 0
    assert main(["memory", "forget", str(path), home.id, "--delete"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ended: User works at Siemens (forgotten)",
        "deleted: User lives in Porto",
    ]
    with Store(path) as store:
        assert [fact.object for fact in store.known(is_current=False)] == ["Siemens"]


VERSION_1 = Path(__file__).with_name("version_1.sql")
"""A file that version 1 wrote: see its first lines."""


@pytest.fixture
def version_1(path: Path) -> Path:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(VERSION_1.read_text(encoding="utf-8"))
    return path


def test_a_file_of_version_1_is_brought_up_to_date(version_1: Path) -> None:
    """What was forgotten stays so, what gave way to a deleted fact stays over, and what was read late counts where it
    was said."""
    with Store(version_1) as store:
        states = {(fact.predicate, fact.object, fact.state) for fact in store.known(is_current=False)}
        assert states == {
            ("WORKS_AT", "Siemens", "completed"), ("WORKS_AT", "Bosch", "ongoing"), ("LIKES", "tea", "forgotten"),
            ("LIVES_IN", "Oslo", "superseded"), ("LIVES_IN", "Porto", "ongoing"), ("VISITS", "Kyoto", "closed"),
        }  # fmt: skip
        assert [str(event.operation.reason) for event in store.history("tea")] == ["new", "forgotten"]
        assert store.apply(said("User LIVES_IN Lima ongoing"), "oslo") == []
        facts, history = store.known(is_current=False), store.history()
    with Store(version_1) as store:
        assert (store.known(is_current=False), store.history()) == (facts, history)


def test_a_file_of_version_1_is_brought_up_to_date_once_or_not_at_all(version_1: Path) -> None:
    with contextlib.closing(sqlite3.connect(version_1)) as database:
        (text,) = database.execute("SELECT observation FROM sources WHERE id = 'oslo'").fetchone()
        database.execute("UPDATE sources SET observation = 'none' WHERE id = 'oslo'")
        database.commit()
        with pytest.raises(ObserverError, match="holds what is none of ours"):
            Store(version_1)
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        database.execute("UPDATE sources SET observation = ? WHERE id = 'oslo'", (text,))
        database.commit()
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(Store, [version_1] * 4))
    assert len({len(store.history()) for store in stores}) == 1
    for store in stores:
        store.close()


def test_what_is_deleted_while_another_program_reads_is_said_to_be_there_still(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("observer.memory.store.BUSY_TIMEOUT_S", 0.1)
    with Store(path) as store, contextlib.closing(sqlite3.connect(path)) as reader:
        store.apply(JOB, "1")
        (job,) = store.known("Siemens")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM facts").fetchall()
        with pytest.raises(ObserverError, match=r"deleted, but .*-wal keeps it while another program reads"):
            store.forget(job.id, delete=True)
        reader.execute("COMMIT")
        assert store.known("Siemens") == []
    assert [b"Siemens" in file.read_bytes() for file in path.parent.iterdir()] == [False]
