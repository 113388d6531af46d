from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ilat_runtime.errors import InputError
from ilat_runtime.segments import (
    CONDITION,
    FIRST_CAUSAL,
    GLOBAL,
    NUMBERINGS,
    POSE,
    Layout,
    Step,
    attention_mask,
    decode_plan,
    segments,
)

AUTOREGRESSIVE = ["local", "released", "vanilla"]
masks = st.integers(1, 25).flatmap(lambda n: hnp.arrays(bool, n))


def paper_mask(masked: np.ndarray, pose_tokens: int) -> np.ndarray:
    """Eq. 7, assembled from its sub-masks; the pose is one more condition, which the image does not attend to."""
    n = len(masked)
    target = range(n + 1)  # 0 is t[s], j + 1 is token j
    is_masked = [row > 0 and bool(masked[row - 1]) for row in target]
    causal = [is_masked[row] or (row < n and is_masked[row + 1]) for row in target]
    global_part = np.zeros((n + 1, n + 1), bool)  # M_gs: global tokens can be attended to by all
    causal_part = np.zeros((n + 1, n + 1), bool)  # M_cs: causal tokens attend to causal ones, lower triangular
    for query in target:
        for key in target:
            global_part[query, key] = not causal[key]
            causal_part[query, key] = causal[query] and causal[key] and key <= query
    assert not (global_part & causal_part).any()
    c, p, t = n + 1, pose_tokens, n + 1
    return np.block(
        [
            [np.ones((c, c), bool), np.zeros((c, p), bool), np.zeros((c, t), bool)],
            [np.ones((p, c), bool), np.ones((p, p), bool), np.zeros((p, t), bool)],
            [np.ones((t, c), bool), np.ones((t, p), bool), global_part | causal_part],
        ]
    )


@given(masks, st.sampled_from([0, 13]))
def test_mask_is_that_of_the_paper(masked: np.ndarray, pose_tokens: int) -> None:
    layout = Layout(len(masked), pose_tokens)
    assert (attention_mask(segments(layout, masked)) == paper_mask(masked, pose_tokens)).all()


@given(masks)
def test_vanilla_is_a_triangle_and_bidirectional_is_full(masked: np.ndarray) -> None:
    layout = Layout(len(masked), 0, ("condition", "target"))
    part = layout.slice("target")
    vanilla = attention_mask(segments(layout, masked, "vanilla"))[part, part]
    assert (vanilla == np.tri(len(masked) + 1, dtype=bool)).all()
    assert attention_mask(segments(layout, masked, "bidirectional"))[part].all()


@given(masks)
def test_released_differs_from_local_in_the_token_before_a_run_only(masked: np.ndarray) -> None:
    layout = Layout(len(masked))
    local = segments(layout, masked)[layout.slice("target")]
    released = segments(layout, masked, "released")[layout.slice("target")]
    first = np.append(masked, False) & ~np.append(False, masked)  # rows that predict the first token of a run
    assert ((released == GLOBAL) == ((local == GLOBAL) | first)).all()
    assert (np.argsort(released[released != GLOBAL]) == np.arange((released != GLOBAL).sum())).all()


def test_figure_3() -> None:
    masked = np.isin(np.arange(9), [1, 2, 5, 7])
    layout = Layout(9, 0)
    plan = decode_plan(layout, masked)
    # Rows: 0 is t[s], j + 1 is t_j. Global: t[s], t_3, t_8.
    assert plan.prefill_target == (0, 4, 9)
    assert plan.prefill_read == ()
    assert plan.steps == (Step((1,), 1), Step((2,), 2), Step((3, 5), 5), Step((6, 7), 7))
    target = plan.segment[layout.slice("target")]
    assert target.tolist() == [2, 3, 4, 5, 2, 6, 7, 8, 9, 2]


@pytest.mark.parametrize("numbering", AUTOREGRESSIVE)
@given(masked=masks, pose_tokens=st.sampled_from([0, 13]))
def test_plan_feeds_what_is_known_and_reads_what_the_full_mask_shows(
    numbering: str, masked: np.ndarray, pose_tokens: int
) -> None:
    layout = Layout(len(masked), pose_tokens)
    plan = decode_plan(layout, masked, numbering)
    start = layout.slice("target").start
    allowed = attention_mask(plan.segment)
    cache = [*range(start), *(start + row for row in plan.prefill_target)]
    values = {int(token) for token in np.flatnonzero(~masked)}  # tokens whose value is known
    read: list[int] = []

    def check(rows: list[int], token: int) -> None:
        """The row of ``token`` was fed, sees all it should see and nothing else."""
        row = start + token
        assert row in rows
        assert {key for key in cache if plan.segment[key] <= plan.segment[row]} == set(np.flatnonzero(allowed[row]))
        read.append(token)

    for order, token in plan.prefill_read:
        assert plan.prefill_target[order] == token
        check(cache, token)
    values |= set(read)
    for step in plan.steps:
        assert all(row == 0 or row - 1 in values for row in step.feed), "fed before it was generated"
        cache += [start + row for row in step.feed]
        check(cache[-len(step.feed) :], step.read)
        values.add(step.read)
    assert sorted(read) == np.flatnonzero(masked).tolist()
    assert [step.read for step in plan.steps] == sorted(step.read for step in plan.steps)
    assert len(plan.steps) <= masked.sum()
    # The cache is filled in the stable order of the segments, and never twice.
    assert cache == np.argsort(plan.segment, kind="stable")[: len(cache)].tolist()


@given(masks)
def test_released_reads_the_first_token_of_a_run_from_the_prefill(masked: np.ndarray) -> None:
    plan = decode_plan(Layout(len(masked)), masked, "released")
    first = np.flatnonzero(masked & ~np.append(False, masked[:-1]))
    assert [token for _, token in plan.prefill_read] == first.tolist()


@pytest.mark.parametrize("numbering", sorted(NUMBERINGS))
def test_condition_and_pose_do_not_depend_on_the_mask(numbering: str) -> None:
    layout = Layout(9, 13, ("source_pose", "condition", "pose", "target"))
    rng = np.random.default_rng(0)
    for _ in range(5):
        segment = segments(layout, rng.random(9) < 0.5, numbering)
        assert (segment[layout.slice("source_pose")] == CONDITION).all()
        assert (segment[layout.slice("condition")] == CONDITION).all()
        assert (segment[layout.slice("pose")] == POSE).all()
        assert (segment[layout.slice("target")] >= GLOBAL).all()


def test_layout() -> None:
    layout = Layout(16, 13)
    assert [layout.slice(block) for block in ("condition", "pose", "target", "source_pose")] == [
        slice(0, 17),
        slice(17, 30),
        slice(30, 47),
        slice(0, 0),
    ]
    assert layout.length == 47
    assert FIRST_CAUSAL == GLOBAL + 1
    assert Layout(4, 13, ("target",)).length == 5


@pytest.mark.parametrize("blocks", [(), ("pose",), ("target", "target"), ("target", "face")])
def test_wrong_layouts(blocks: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="layout"):
        Layout(4, 13, blocks)


def test_wrong_masks_and_numberings() -> None:
    with pytest.raises(InputError, match="token_mask"):
        segments(Layout(4), np.zeros(5, bool))
    with pytest.raises(InputError, match="numbering"):
        segments(Layout(4), np.zeros(4, bool), "locale")
    with pytest.raises(InputError, match="not autoregressive"):
        decode_plan(Layout(4), np.zeros(4, bool), "bidirectional")
