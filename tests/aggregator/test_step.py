"""Messages to counts: each person once, whatever comes again or out of turn."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aggregator.fusion import UNKNOWN_CELL, Cell
from aggregator.step import CountingConfig, Step, Tracks, advance, ends_of
from aggregator.store import CameraClock, PlaceCell, TrackKey, TrackState
from pipeline.messages import CameraStatus, Message, Prediction, TrackEnded

CONFIG = CountingConfig(enough_crops=2, least_evidence=0.3, idle_s=60, remember_s=600)
START = 1_790_000_000.0


def said(
    track: int, sequence: int, *, age: float = 30, p_female: float = 0.9, quality: float = 0.5, camera: str = "hall"
) -> Prediction:
    """Make one prediction of a track that was first seen 10 s x its number after START."""
    first = START + 10 * track
    return Prediction(
        camera_id=camera, track_id=track, sequence=sequence, first_seen=first, captured_at=first + sequence / 2, quality=quality,
        age=age, age_spread=5.0, p_female=p_female, p_ethnicity=(0.6, 0.1, 0.1, 0.1, 0.1),
    )  # fmt: skip


def ended(track: int, crops: int, *, camera: str = "hall") -> TrackEnded:
    """Make the end of a track."""
    first = START + 10 * track
    return TrackEnded(camera_id=camera, track_id=track, first_seen=first, last_seen=first + 4, crops=crops)


class Model:
    """Holds what a store would, by the plainest means."""

    def __init__(self) -> None:
        self.tracks: dict[TrackKey, TrackState] = {}
        self.clocks: dict[str, CameraClock] = {}
        self.counted: Counter[tuple[float, PlaceCell]] = Counter()
        self.totals: Counter[PlaceCell] = Counter()

    def take(self, step: Step) -> Step:
        """Apply a step."""
        self.clocks.update(step.changes.clocks)
        self.counted.update(step.changes.counted)
        self.totals.update(step.changes.totals)
        for key, state in step.changes.tracks.items():
            if state is None:
                self.tracks.pop(key, None)
            else:
                self.tracks[key] = state
        return step

    def run(self, *messages: Message) -> Step:
        """Take messages in."""
        return self.take(advance(Tracks(self.tracks, self.clocks), messages, CONFIG))

    def shown(self) -> dict[tuple[float, PlaceCell], int]:
        """Give what is counted, without what was taken back."""
        return {key: count for key, count in self.counted.items() if count}


WOMAN = PlaceCell("default", "hall", Cell("female", "25-34", "white"))
MAN = PlaceCell("default", "hall", Cell("male", "25-34", "white"))


def test_a_visitor_is_counted_early_corrected_and_totalled_at_the_end() -> None:
    """One person all along."""
    model = Model()
    model.run(said(1, 0))
    assert not model.shown()  # one crop is not enough
    model.run(said(1, 1))
    assert model.shown() == {(START + 10, WOMAN): 1}
    model.run(said(1, 2, p_female=0.01, quality=1.0), said(1, 3, p_female=0.01, quality=1.0))
    assert model.shown() == {(START + 10, MAN): 1}  # taken out of the one cell, put into the other
    assert not model.totals
    model.run(ended(1, 4))
    assert model.shown() == {(START + 10, MAN): 1}
    assert model.totals == {MAN: 1}


def test_a_track_without_a_usable_crop_is_an_unknown_visitor() -> None:
    """Too little evidence is counted, never guessed and never lost."""
    model = Model()
    model.run(ended(1, 0), said(2, 0, quality=0.2), ended(2, 1))
    unknown = PlaceCell("default", "hall", UNKNOWN_CELL)
    assert model.totals == {unknown: 2}
    assert sum(model.shown().values()) == 2


def test_a_camera_status_counts_nobody() -> None:
    """It is kept, as the newest."""
    step = Model().run(CameraStatus(camera_id="hall", at=START, state="running"))
    assert not step.changes.counted
    assert step.changes.cameras["hall"].state == "running"


def test_a_track_that_its_camera_has_left_behind_is_closed() -> None:
    """Ingest died before it could say so: later evidence of the same camera closes it, by event time."""
    model = Model()
    model.run(said(1, 0), said(1, 1))
    model.run(said(5, 0))  # 40 s later: not yet
    assert not model.totals
    model.run(said(8, 0))  # 70 s later
    assert model.totals == {WOMAN: 1}
    assert sum(model.shown().values()) == 1


def test_tracks_of_before_are_judged_anew_where_a_connection_begins_earlier_than_the_last() -> None:
    """A worker restarts on a machine whose clock is behind: by the newest connection's clock, its predecessors' tracks wait less.

    Whoever has held the partition all along closes what somebody closes who has loaded it just now.
    """
    #  connection    1      2             3
    #  begins at     900    1000          950 ─────────▶ 1011
    #  track 1       heard  (1000)        (950)          idle for 61 s: closed
    model, held = Model(), Tracks({}, {})

    def at(connection: int, when: float) -> Prediction:
        return replace(said(0, 0), track_id=connection << 20, first_seen=START + when, captured_at=START + when)

    def passed(number: int, when: float) -> TrackEnded:
        return replace(ended(0, 0), track_id=(3 << 20) + number, first_seen=START + when, last_seen=START + when)

    for message in (at(1, 900), at(2, 1000), passed(0, 950)):
        model.take(advance(held, [message], CONFIG))
    assert [state.track_id >> 20 for state in held.open()] == [1, 2]
    anew = advance(Tracks(model.tracks, model.clocks), [passed(1, 1011)], CONFIG)
    on = advance(held, [passed(1, 1011)], CONFIG)
    assert [item.track.track_id >> 20 for item in on.closed] == [3, 1]
    assert on == anew


def test_another_camera_does_not_close_a_track() -> None:
    """Clocks are each camera's own."""
    model = Model()
    model.run(said(1, 0), said(1, 1), said(20, 0, camera="entrance"))
    assert not model.totals


def test_the_tracks_of_a_silent_camera_are_closed_once() -> None:
    """By processing time, when it has died; a late end then changes nothing."""
    model = Model()
    model.run(said(1, 0), said(2, 0, camera="entrance"))
    ends = ends_of(Tracks(model.tracks, model.clocks), {"hall"})
    model.run(*ends, *ends, ended(1, 1))
    assert model.totals == {WOMAN: 1}


def test_a_closed_track_is_forgotten_after_a_while() -> None:
    """Memory is bounded by what may still be repeated."""
    model = Model()
    model.run(said(1, 0), ended(1, 1))
    model.run(said(100, 0))  # 990 s later
    assert ("hall", 1) not in model.tracks
    assert ("hall", 100) in model.tracks


visits = st.lists(
    st.lists(st.tuples(st.floats(0.05, 1), st.floats(0, 100), st.floats(0, 1)), max_size=5), min_size=1, max_size=5
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Message], list[Message]]:
    """Draw what happened, and one way in which at-least-once delivery may bring it: repeats, in batches, per track in order."""
    happened: list[list[Message]] = []
    for number, crops in enumerate(draw(visits)):
        track: list[Message] = [
            said(number, sequence, quality=quality, age=age, p_female=p_female)
            for sequence, (quality, age, p_female) in enumerate(crops)
        ]
        happened.append([*track, ended(number, len(crops))])
    clean = [message for track in happened for message in track]
    # A crash replays a stretch that ends where it had got to: any prefix of the log may come again after it.
    brought: list[Message] = []
    position = 0
    while position < len(clean):
        end = draw(st.integers(position + 1, len(clean)))
        brought += clean[draw(st.integers(0, position)) : end]
        position = end
    return clean, brought


@given(histories(), st.data())
def test_repeats_and_batches_change_no_count(history: tuple[list[Message], list[Message]], data: st.DataObject) -> None:
    """Whatever is delivered again, in whatever batches, the counts are those of one uninterrupted run."""
    clean, brought = history
    once, again = Model(), Model()
    for message in clean:
        once.run(message)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(brought)), max_size=6)) | {0, len(brought)})
    for start, end in pairwise(cuts):
        again.run(*brought[start:end])
    assert again.totals == once.totals
    assert again.shown() == once.shown()
    assert sum(once.totals.values()) == sum(isinstance(message, TrackEnded) for message in clean)


@given(histories(), st.data())
def test_one_step_leaves_what_as_many_steps_as_messages_leave(
    history: tuple[list[Message], list[Message]], data: st.DataObject
) -> None:
    """Only the last cell of a step is worked out, yet tracks, cells and totals are the same; ends of who is no visitor, too."""
    mixed: list[Message] = [
        msgspec.structs.replace(message, visitor=data.draw(st.booleans()))
        if isinstance(message, TrackEnded)
        else message
        for message in data.draw(st.permutations(history[0]))
    ]
    singly, at_once = Model(), Model()
    for message in mixed:
        singly.run(message)
    at_once.run(*mixed)
    assert at_once.shown() == singly.shown()
    assert at_once.totals == singly.totals
    assert at_once.tracks == singly.tracks


@given(histories())
def test_every_visitor_stands_in_exactly_one_cell(history: tuple[list[Message], list[Message]]) -> None:
    """No cell is ever negative, and windows and totals agree once all have left."""
    model = Model()
    for message in history[1]:
        model.run(message)
        assert all(count >= 0 for count in model.counted.values())
    by_cell: Counter[PlaceCell] = Counter()
    for (_, cell), count in model.shown().items():
        by_cell[cell] += count
    assert by_cell == model.totals


# ── what passages add up to ───────────────────────────────────────────────────────────────────────────────────────────


def passage(track: int, **more: object) -> TrackEnded:
    """Make the end of a track that crossed a line, or stayed for some time."""
    return msgspec.structs.replace(ended(track, 0), **more)


def test_crossings_and_dwell_are_counted_once_however_often_an_end_is_said() -> None:
    """Of who came in, who went out and is no visitor, and who turned round."""
    come, went = passage(1, entries=1, dwell_s=3.5), passage(2, visitor=False, exits=1, dwell_s=2.0)
    turned = passage(3, entries=1, exits=1, dwell_s=700.0)
    model = Model()
    steps = [model.run(come, went, come), model.run(went, turned, turned, come)]
    added = steps[0].changes.passages + steps[1].changes.passages
    assert added == {
        ("x", "default", "hall", "in"): 2, ("x", "default", "hall", "out"): 2,
        ("d", "default", "hall", "5"): 1, ("d", "default", "hall", "1800"): 1, ("t", "default", "hall", "ms"): 703_500,
    }  # fmt: skip
    assert sum(model.totals.values()) == 2, "who went out is no visitor"
    assert not [item for step in steps for item in step.closed if item.track.track_id == 2]


def test_who_turns_out_to_be_nobody_leaves_the_cell_and_never_was_in_the_total() -> None:
    """A poster was counted early; its end says so, before anything was final. Closed before that, it stays: totals only grow."""
    model = Model()
    model.run(said(0, 0), said(0, 1))
    assert sum(model.counted.values()) == 1
    nobody = replace(ended(0, 2), visitor=False)
    model.run(nobody)
    assert set(model.counted.values()) == {0}
    assert not model.totals
    assert model.run(nobody, said(0, 2), ended(0, 2)).duplicates == 3
    model.run(said(1, 0), said(1, 1), ended(1, 2), replace(ended(1, 2), visitor=False))
    assert sum(model.counted.values()) == sum(model.totals.values()) == 1


def test_an_end_without_dwell_says_nothing_of_it() -> None:
    """Records of an older ingest have none."""
    assert not Model().run(ended(1, 0)).changes.passages
