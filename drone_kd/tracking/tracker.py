"""Tracker: from detections of old frames to boxes that are valid at any requested time.

Each detection is compared with the tracks where they were in its own frame; tracks are predicted
along the camera motion up to the newest frame and beyond. Association by scores as in ByteTrack
(Zhang et al., ECCV 2022), but by likelihood instead of IoU: small objects move by more than their
size between two inferences.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from drone_kd.core.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from drone_kd.core.boxes import intersection, iou
from drone_kd.core.detections import Detections
from drone_kd.tracking import kalman
from drone_kd.tracking.assignment import assign
from drone_kd.tracking.ego_motion import Motion
from drone_kd.tracking.kalman import States
from drone_kd.tracking.motion_chain import MotionChain
from drone_kd.tracking.tracks import TrackerSettings, Tracks

# Chi-square with 2 degrees of freedom: 99.9 %, and 99 % for detections of low score.
_GATE, _LOW_GATE = 13.8, 9.2
# Width and height of a detection may differ from those of the track by this factor.
_MAX_SIZE_FACTOR = 2.0
# What another class costs, as an addition to the squared distance.
_OTHER_CLASS = 2.0
# A side of a box this near to the border of a frame of 1280 px is cut off there.
_BORDER_PX = 2.0
# Part of a box that the frame has to show.
_MIN_VISIBLE = 0.15


@dataclass(frozen=True, eq=False)
class _Table:
    """What a tracker knows of N tracks, besides their states."""

    ids: Int64Array
    born_ns: Int64Array
    seen_ns: Int64Array  # last detection
    hits: Int64Array  # detections
    misses: Int64Array  # since the last detection
    score: Float64Array  # mean of the newest scores
    votes: Float64Array  # (N, classes): sum of the scores
    cut: BoolArray  # (N, 4): sides beyond the border of the frame, never seen

    def __getitem__(self, index: BoolArray | Int64Array | slice) -> _Table:
        return _Table(*(getattr(self, field.name)[index] for field in fields(self)))


class Tracker:
    """Tracks the objects of one camera; not for several threads at once.

    Args:
        width, height: of the frames in pixels.
        settings: see `TrackerSettings`.
    """

    def __init__(self, width: int, height: int, settings: TrackerSettings | None = None) -> None:
        self._size = width, height
        self._settings = settings or TrackerSettings()
        self._chain = MotionChain(width, height)
        self._next_id = 1
        self._forget()

    def resize(self, width: int, height: int) -> None:
        """End all tracks, since the frames have another size; ids go on."""
        self._size = width, height
        self._chain = MotionChain(width, height)
        self._forget()

    def add_motion(self, motion: Motion) -> None:
        """Add the camera motion to a new frame, for every frame and in their order.

        Where the clock goes back, all tracks end.
        """
        newest = self._chain.newest_ns
        if newest is not None and motion.stamp_ns == newest:
            return
        if newest is not None and motion.stamp_ns < newest:
            self._chain.clear()
            self._forget()
        self._chain.add(motion)

    def update(
        self, stamp_ns: int, detections: Detections, windows: Int64Array | None = None
    ) -> bool:
        """Continue, begin and end tracks by the detections of one frame, which may be empty.

        Args:
            stamp_ns: of the frame, an older one than the newest if inference took its time.
            detections: in pixels of the frame.
            windows: (M, 4) x1, y1, x2, y2 of the parts of the frame that were searched; tracks
                elsewhere miss nothing. None: all of it.

        Returns:
            False if the detections are of no use, since later ones came before, or since the frame
            is unknown.
        """
        oldest, newest = self._chain.oldest_ns, self._chain.newest_ns
        if oldest is None or newest is None or not oldest <= stamp_ns <= newest:
            return False
        if self._at_ns is not None and stamp_ns < self._at_ns:
            return False
        self._move_to(stamp_ns)
        found, votes = self._without_duplicates(detections)
        tracks, hits = self._associate(found)
        missed = self._searched(windows)
        missed[tracks] = False
        self._continue(tracks, found, hits, votes[hits], stamp_ns)
        self._end(missed, stamp_ns)
        is_new = found.scores >= self._settings.new_score
        is_new[hits] = False
        self._begin(found.xyxy[is_new], found.scores[is_new], votes[is_new], stamp_ns)
        return True

    def predict(self, stamp_ns: int) -> Tracks:
        """Return the tracks as they are expected to be at a time; none beyond the horizon.

        Args:
            stamp_ns: not before the frame of the last update; an earlier time counts as that.
        """
        settings, newest = self._settings, self._chain.newest_ns
        table, states, at = self._table, self._states, self._at_ns
        if at is None or newest is None or stamp_ns - newest > settings.horizon_s * 1e9:
            return self._report(stamp_ns, table[:0], states[:0])
        stamp_ns = max(stamp_ns, at)
        states = self._predicted(kalman.without_noise_in_velocity(states), at, stamp_ns)
        states = self._grown(states, table.cut)
        usable = self._usable(states)
        return self._report(stamp_ns, table[usable], states[usable])

    def _forget(self) -> None:
        nothing = np.zeros(0, np.int64)
        self._at_ns: int | None = None  # frame of the last update, in whose pixels the states are
        self._states = kalman.new(np.zeros((0, 4)), self._settings.noise)
        self._table = _Table(
            *(nothing, nothing, nothing, nothing, nothing),
            *(np.zeros(0), np.zeros((0, 1)), np.zeros((0, 4), bool)),
        )

    def _predicted(self, states: States, from_ns: int, to_ns: int) -> States:
        path = self._chain.between(from_ns, to_ns)
        return kalman.predict(states, (to_ns - from_ns) / 1e9, path, self._settings.noise)

    def _move_to(self, stamp_ns: int) -> None:
        """Predict all tracks to the frame of the next update."""
        if self._at_ns is not None and len(self._states):
            states = self._predicted(self._states, self._at_ns, stamp_ns)
            self._states = self._grown(states, self._table.cut)
            self._keep(np.asarray(np.isfinite(self._states.xyxy).all(axis=1)))
        self._at_ns = stamp_ns

    def _keep(self, keep: BoolArray) -> None:
        self._states, self._table = self._states[keep], self._table[keep]

    def _without_duplicates(self, detections: Detections) -> tuple[Detections, Float64Array]:
        """Return one detection per object, best first, and votes (N, classes) for its class."""
        order = np.argsort(-detections.scores, kind="stable")
        xyxy, scores = detections.xyxy[order], detections.scores[order]
        ids = detections.class_ids[order]
        classes = max(self._table.votes.shape[1], int(ids.max(initial=0)) + 1)
        votes = np.zeros((len(ids), classes))
        votes[np.arange(len(ids)), ids] = scores
        # Within a class NMS has removed them.
        same = (iou(xyxy, xyxy) > self._settings.duplicate_iou) & (ids[:, None] != ids[None, :])
        kept = np.ones(len(ids), bool)
        for i in np.flatnonzero(same.any(1)):
            if kept[i]:
                weaker = np.flatnonzero(same[i, i + 1 :] & kept[i + 1 :]) + i + 1
                votes[i] += votes[weaker].sum(0)
                kept[weaker] = False
        return Detections(xyxy[kept], scores[kept], ids[kept]), votes[kept]

    def _associate(self, found: Detections) -> tuple[Int64Array, Int64Array]:
        """Return tracks and detections (K,) that belong together: by high scores, then by low."""
        distance, cost = self._distances(found)
        high = found.scores >= self._settings.high_score
        tracks, hits = assign(cost, (distance < _GATE) & high)
        free = np.ones(len(self._table.ids), bool)
        free[tracks] = False
        more, low_hits = assign(cost, (distance < _LOW_GATE) & ~high & free[:, None])
        return np.concatenate([tracks, more]), np.concatenate([hits, low_hits])

    def _distances(self, found: Detections) -> tuple[Float64Array, Float64Array]:
        """Return squared Mahalanobis distances and costs (tracks, detections)."""
        states, noise = self._states, self._settings.noise
        xyxy = found.xyxy.astype(np.float64)
        covariance = kalman.innovation_covariance(states, noise)
        inverse = np.linalg.inv(covariance)[:, None]
        # One coordinate at a time: several times faster than arrays of shape (N, M, 2).
        x, y = ((xyxy[:, i] + xyxy[:, i + 2]) / 2 - states.mean[:, i, None] for i in (0, 1))
        distance = inverse[..., 0, 0] * x * x + inverse[..., 1, 1] * y * y
        distance += 2 * inverse[..., 0, 1] * x * y
        log_wh = np.log(np.maximum(xyxy[:, 2:] - xyxy[:, :2], 1.0))
        size = sum(np.abs(log_wh[:, i] - states.log_size[:, i, None]) for i in (0, 1)) / 2
        limit = np.log(_MAX_SIZE_FACTOR)
        other = self._table.votes.argmax(1)[:, None] != found.class_ids[None, :]
        cost = distance + np.log(np.linalg.det(covariance))[:, None]
        cost += 9 * (size / limit) ** 2 + _OTHER_CLASS * other
        return np.where(size < limit, distance, np.inf), cost

    def _continue(
        self,
        tracks: Int64Array,
        found: Detections,
        hits: Int64Array,
        votes: Float64Array,
        stamp_ns: int,
    ) -> None:
        """Update tracks by their detections."""
        xyxy, cut = self._uncut(found.xyxy[hits], self._states[tracks])
        scores = found.scores[hits]
        after = kalman.update(self._states[tracks], xyxy, self._settings.noise)
        for field in fields(States):
            getattr(self._states, field.name)[tracks] = getattr(after, field.name)
        table = self._table
        if votes.shape[1] > table.votes.shape[1]:
            more = votes.shape[1] - table.votes.shape[1]
            table = replace(table, votes=np.pad(table.votes, ((0, 0), (0, more))))
            self._table = table
        table.votes[tracks] += votes
        table.cut[tracks] = cut
        table.hits[tracks] += 1
        table.misses[tracks] = 0
        table.seen_ns[tracks] = stamp_ns
        share = np.maximum(1 / table.hits[tracks], self._settings.score_share)
        table.score[tracks] += share * (scores - table.score[tracks])

    def _uncut(self, xyxy: Float32Array, states: States) -> tuple[Float64Array, BoolArray]:
        """Return boxes (N, 4) with the expected sides where the border of the frame cuts them.

        Also returns which sides (N, 4) are cut off without a known place beyond the border.
        """
        expected, measured = states.xyxy, xyxy.astype(np.float64)
        cut, outwards = self._cut(xyxy), np.array([-1, -1, 1, 1])
        known = cut & ((expected - measured) * outwards > 0)
        return np.where(known, expected, measured), cut & ~known

    def _cut(self, xyxy: Float32Array) -> BoolArray:
        """Return which sides (N, 4) of boxes the border of the frame cuts off."""
        near, limit = _BORDER_PX * max(self._size) / 1280, np.array(self._size)
        return np.hstack([xyxy[:, :2] <= near, xyxy[:, 2:] >= limit - near])

    def _grown(self, states: States, cut: BoolArray) -> States:
        """Return states whose boxes still reach the border that cut them: more comes into view."""
        xyxy, limit = states.xyxy, np.array(self._size, np.float64)
        inside = np.hstack([xyxy[:, :2] > 0, xyxy[:, 2:] < limit])
        border = np.broadcast_to([0.0, 0.0, *limit], xyxy.shape)
        return kalman.stretched(states, np.where(cut & inside, border, xyxy))

    def _searched(self, windows: Int64Array | None) -> BoolArray:
        """Return which tracks (N,) lie within the parts of the frame that were searched."""
        if windows is None:
            return np.ones(len(self._states), bool)
        middle = self._states.mean[:, None, :2]
        inside = (middle >= windows[None, :, :2]) & (middle < windows[None, :, 2:])
        return np.asarray(np.asarray(inside.all(axis=2)).any(axis=1))

    def _end(self, missed: BoolArray, stamp_ns: int) -> None:
        """End tracks that are missed for too long, have left the frame or are too uncertain."""
        settings, table = self._settings, self._table
        table.misses[missed] += 1
        certain = table.hits >= settings.confirm_hits
        too_old = stamp_ns - table.seen_ns > settings.max_age_s * 1e9
        self._keep(~(missed & ~certain) & ~too_old & self._usable(self._states))

    def _begin(
        self, xyxy: Float32Array, scores: Float32Array, votes: Float64Array, stamp_ns: int
    ) -> None:
        n, old = len(xyxy), self._table
        ids = np.arange(self._next_id, self._next_id + n)
        self._next_id += n
        self._states = kalman.join(
            self._states, kalman.new(xyxy.astype(np.float64), self._settings.noise)
        )
        more = max(votes.shape[1] - old.votes.shape[1], 0)
        old = replace(old, votes=np.pad(old.votes, ((0, 0), (0, more))))
        times, ones = np.full(n, stamp_ns, np.int64), np.ones(n, np.int64)
        cut, kept_scores = self._cut(xyxy), scores.astype(np.float64)
        added = _Table(ids, times, times, ones, 0 * ones, kept_scores, votes, cut)
        self._table = _Table(
            *(
                np.concatenate([getattr(old, field.name), getattr(added, field.name)])
                for field in fields(_Table)
            )
        )

    def _usable(self, states: States) -> BoolArray:
        """Return which states (N,) are certain enough and in the frame."""
        xyxy = np.nan_to_num(states.xyxy, nan=-1.0).astype(np.float32)
        frame = np.array([[0, 0, *self._size]], np.float32)
        visible = intersection(xyxy, frame)[:, 0] > _MIN_VISIBLE * states.wh.prod(1)
        spread = np.sqrt(states.covariance[:, :2, :2].trace(axis1=1, axis2=2) / 2)
        limit = self._settings.max_deviation * np.exp(states.log_size.mean(1))
        usable: BoolArray = np.isfinite(states.xyxy).all(1) & visible & (spread < limit)
        return usable

    def _report(self, stamp_ns: int, table: _Table, states: States) -> Tracks:
        settings, limit = self._settings, np.array([*self._size] * 2, np.float64)
        scores = (table.score * settings.decay**table.misses).astype(np.float32)
        found = Detections(
            np.clip(states.xyxy, 0, limit).astype(np.float32), scores, table.votes.argmax(1)
        )
        confirmed = table.hits >= settings.confirm_hits
        tracks = Tracks(
            stamp_ns,
            table.ids,
            found,
            confirmed,
            states.covariance[:, :2, :2].astype(np.float32),
            states.mean[:, 2:].astype(np.float32),
            ((stamp_ns - table.born_ns) / 1e9).astype(np.float32),
            ((stamp_ns - table.seen_ns) / 1e9).astype(np.float32),
        )
        return tracks[np.lexsort((-scores, ~confirmed))]
