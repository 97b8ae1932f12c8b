"""Beats: who is gone, who is silent, and that nothing beats for nobody."""

import asyncio

import pytest

from natsweb import beats
from natsweb.beats import Pulse
from natsweb.bus import MemoryBus
from natsweb.errors import NatsDown
from natsweb.natsbus import connect
from natsweb.settings import Nats

PEER, OTHER = b"_INBOX.peer.7", b"_INBOX.other.7"


class Work:
    """A piece of shared work, and what it was told."""

    def __init__(self, error=None, *, flows=True, to=b""):
        self.flows = flows
        self.to = to
        self.lost = []
        self.reminded = 0
        self.error = error

    def lose(self, why):
        """Note that the other process is gone."""
        self.lost.append(why)
        if self.error is not None:
            raise self.error

    def remind(self):
        """Note that it is time to say something."""
        self.reminded += 1


class Drum:
    """A pulse whose beats are counted instead of sent, and whose time is told."""

    def __init__(self):
        self.sent = []
        self.down = False
        self.pulse = Pulse(b"_INBOX.me", self.post)

    def post(self, subject, reply):
        """Note a beat."""
        if self.down:
            raise NatsDown("there is no connection to NATS")
        self.sent.append((subject, reply))

    def tick(self, times=1):
        """Let time pass."""
        for _ in range(times):
            if self.pulse._timer is not None:
                self.pulse._timer.cancel()
                self.pulse._tick()

    def nobody(self, beat=b"_INBOX.peer.beat"):
        """Hear from the server that nobody listens there."""
        self.pulse.hear(b"", b"NATS/1.0 503\r\nNats-Subject: %b\r\n\r\n" % beat)


@pytest.fixture
async def drum():
    """Give a drum."""
    drum = Drum()
    yield drum
    drum.pulse.close()


async def test_a_beat(drum):
    """It goes to the inbox of the other process, with our own as reply: one for each, however much is shared."""
    works = [Work() for _ in range(3)]
    peers = {drum.pulse.join(b"_INBOX.peer.%d" % number, work) for number, work in enumerate(works)}
    assert len(peers) == 1
    drum.pulse.join(OTHER, Work())
    assert drum.sent == []
    drum.tick()
    assert sorted(drum.sent) == [(b"_INBOX.other.beat", b"_INBOX.me.beat"), (b"_INBOX.peer.beat", b"_INBOX.me.beat")]
    drum.tick(3)
    assert len(drum.sent) == 8


async def test_work_that_is_over(drum):
    """With the last piece the other process is forgotten, and the timer ends by itself."""
    one, two = Work(), Work()
    peer = drum.pulse.join(PEER, one)
    assert drum.pulse.join(b"_INBOX.peer.8", two) is peer
    assert "2 shared" in repr(peer)
    drum.pulse.leave(peer, one)
    drum.tick()
    assert len(drum.sent) == 1
    drum.pulse.leave(peer, two)
    drum.pulse.leave(peer, two)
    assert drum.pulse._peers == {}
    drum.tick()
    assert (len(drum.sent), drum.pulse._timer) == (1, None)
    drum.pulse.join(PEER, one)
    assert drum.pulse._timer is not None
    assert "1 peers" in repr(drum.pulse)


async def test_nobody_listens_twice_in_a_row(drum):
    """The process is gone, and all that was shared with it is told; others are not."""
    works, other = [Work(), Work()], Work()
    for work in works:
        drum.pulse.join(PEER, work)
    drum.pulse.join(OTHER, other)
    drum.tick()
    drum.nobody()
    assert [work.lost for work in works] == [[], []]
    drum.tick()
    drum.nobody()
    assert [work.lost for work in works] == [["its process is gone"]] * 2
    drum.nobody()
    assert (other.lost, len(drum.pulse._peers)) == ([], 1)


async def test_nobody_listens_once(drum):
    """A process that is heard of in between is there: it has only reconnected."""
    work = Work()
    peer = drum.pulse.join(PEER, work)
    for _ in range(10):
        drum.tick()
        drum.nobody()
        drum.pulse.hear(b"_INBOX.peer.beat", None)
        assert peer.heard
    assert work.lost == []


@pytest.mark.parametrize(
    "header",
    [
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 503\r\nNats-Subject: _INBOX.unknown.beat\r\n\r\n",
        b"NATS/1.0 503\r\nOther: _INBOX.peer.beat\r\n\r\n",
        b"NATS/1.0\r\nNats-Subject: _INBOX.peer.beat\r\n\r\n",
        b"garbage",
    ],
)
async def test_nobody_listens_elsewhere(drum, header):
    """What does not name a process that we share work with says nothing."""
    work = Work()
    drum.pulse.join(PEER, work)
    for _ in range(5):
        drum.pulse.hear(b"", header)
    drum.pulse.hear(b"_INBOX.unknown.beat", None)
    assert work.lost == []


async def test_silence(drum):
    """A process of which nothing is heard for half a minute is gone; any message of it counts."""
    work = Work()
    peer = drum.pulse.join(PEER, work)
    drum.tick(beats._SILENCE)
    peer.heard = True
    drum.tick(beats._SILENCE)
    assert work.lost == []
    assert f"{beats._SILENCE - 1} s silent" in repr(peer)
    drum.tick()
    assert work.lost == [f"nothing was heard of its process for {beats._SILENCE} s"]
    assert drum.pulse._peers == {}


async def test_silence_and_one_answer(drum):
    """What waits for one answer has its own time: only streams end, and what begins to stream afterwards."""
    answer, stream = Work(flows=False), Work()
    drum.pulse.join(PEER, answer)
    drum.pulse.join(PEER, stream)
    drum.tick(beats._SILENCE + 1)
    assert (len(answer.lost), len(stream.lost)) == (0, 1)
    answer.flows = True
    drum.tick()
    assert (len(answer.lost), drum.pulse._peers) == (1, {})


async def test_messages_that_the_server_refuses(drum):
    """The work that they are for ends, and no other; the server says their subject in lower case."""
    mine, other = Work(to=b"_INBOX.Peer.7"), Work(to=b"_INBOX.Peer.8")
    for work in (mine, other):
        drum.pulse.join(work.to, work)
    drum.pulse.refused(b"_inbox.peer.7")
    drum.pulse.refused(b"orders.delete")
    assert (mine.lost, other.lost) == (["NATS does not let this user publish its messages"], [])


@pytest.mark.parametrize("subject", [b"_R_.abc.7", b"_GR_.abc.def.7"])
async def test_a_peer_behind_an_import(drum, subject):
    """There is no beat beside a subject that the server made up: its work is reminded, and its silence tells."""
    work, other = Work(), Work()
    peer = drum.pulse.join(subject, work)
    assert drum.pulse.join(subject + b"x", other) is not peer
    drum.tick(2)
    assert (work.reminded, drum.sent) == (1, [])
    drum.tick(beats._SILENCE - 2)
    assert (work.reminded, work.lost) == (beats._SILENCE // beats._REMINDER, [])
    drum.tick(2)
    assert len(work.lost) == 1


async def test_one_that_fails_when_it_is_told(drum, caplog):
    """The others are told all the same."""
    works = [Work(ValueError("broken")), Work(), Work(ValueError("broken"))]
    for work in works:
        drum.pulse.join(PEER, work)
    for _ in range(2):
        drum.tick()
        drum.nobody()
    assert [len(work.lost) for work in works] == [1, 1, 1]
    assert caplog.text.count("ValueError: broken") == 2


async def test_without_a_connection(drum):
    """No beat goes out, and time goes on."""
    drum.pulse.join(PEER, Work())
    drum.down = True
    drum.tick(3)
    drum.down = False
    drum.tick()
    assert len(drum.sent) == 1


async def test_after_the_end(drum):
    """Nothing beats any more, whoever joins."""
    drum.pulse.join(PEER, Work())
    drum.pulse.close()
    drum.pulse.join(OTHER, Work())
    assert drum.pulse._timer is None
    drum.pulse.close()


async def test_work_that_leaves_while_it_is_told(drum):
    """Who lets go of everything when it hears of the loss does no harm."""

    class Leaving(Work):
        def lose(self, why):
            super().lose(why)
            drum.pulse.leave(peer, self)

    works = [Leaving(), Leaving()]
    for work in works:
        peer = drum.pulse.join(PEER, work)
    for _ in range(2):
        drum.tick()
        drum.nobody()
    assert [len(work.lost) for work in works] == [1, 1]


# ── real time, real buses ──


@pytest.fixture
def quick(monkeypatch):
    """Beat often."""
    monkeypatch.setattr("natsweb.beats._BEAT", 0.05)


@pytest.fixture(params=["memory", "nats"])
async def three(request, nats_url):
    """Give the buses of three processes; in memory each is a world of its own."""
    if request.param == "memory":
        made = [MemoryBus() for _ in range(3)]
    else:
        made = [await connect(Nats(urls=(nats_url,))) for _ in range(3)]
        for bus in made:
            await bus.flush()  # so that the server knows of their inboxes
    yield request.param, *made
    for bus in made:
        await bus.close()


async def test_processes_that_live_and_one_that_dies(quick, three, until):
    """Those that share work keep each other; one that goes is lost after two beats."""
    kind, one, two, dying = three
    lasting, mortal = Work(), Work()
    if kind == "memory":  # one bus is all processes: what nobody has subscribed to is gone
        one.pulse.join(one.new_inbox().encode() + b".1", mortal)
        one.pulse.join(one._inbox.subject.encode() + b".1", lasting)
    else:
        one.pulse.join(dying._inbox.subject.encode() + b".1", mortal)
        one.pulse.join(two._inbox.subject.encode() + b".1", lasting)
        two.pulse.join(one._inbox.subject.encode() + b".1", Work())
        dying.pulse.join(one._inbox.subject.encode() + b".1", Work())
        await asyncio.sleep(0.2)
        assert mortal.lost == []
        await dying.close()
    began = asyncio.get_running_loop().time()
    await until(lambda: mortal.lost)
    assert mortal.lost == ["its process is gone"]
    assert asyncio.get_running_loop().time() - began < 2
    await asyncio.sleep(0.3)
    assert lasting.lost == []


async def test_silence_is_broken_by_beats_both_ways(quick, monkeypatch, three):
    """Processes that share work and say nothing do not lose each other."""
    monkeypatch.setattr("natsweb.beats._SILENCE", 3)
    kind, one, two, _ = three
    here, there = Work(), Work()
    if kind == "memory":
        two = one
    one.pulse.join(two._inbox.subject.encode() + b".1", here)
    two.pulse.join(one._inbox.subject.encode() + b".2", there)
    await asyncio.sleep(0.5)
    assert (here.lost, there.lost) == ([], [])


async def test_a_process_that_shares_nothing_any_more(quick, monkeypatch, three, until):
    """It is there, but sends no beats: its silence is heard."""
    monkeypatch.setattr("natsweb.beats._SILENCE", 3)
    kind, one, two, _ = three
    if kind == "memory":
        pytest.skip("one process hears its own beats")
    work = Work()
    one.pulse.join(two._inbox.subject.encode() + b".1", work)
    await until(lambda: work.lost)
    assert work.lost == ["nothing was heard of its process for 3 s"]


async def test_an_idle_process_has_no_timer(quick, three, until):
    """When all work is over there is nothing that wakes it up."""
    _, one, two, _ = three
    work = Work()
    assert one.pulse._timer is None
    peer = one.pulse.join(two._inbox.subject.encode() + b".1", work)
    one.pulse.leave(peer, work)
    await until(lambda: one.pulse._timer is None)
