"""Every random key is either drawn from once or split: whole programs, with a generator that
records the use of its keys."""

import contextlib
import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import random as extended
from problems import quick_jit
from test_continual import SMALL as STREAM_RUN
from test_continual import labelled
from test_fewshot import small_model as few_shot_model
from test_online import DATA, small_model
from test_online import SMALL as ONLINE_RUN

from jaxsparse import gates, init_lamaml_state, lamaml_step, nn, training
from jaxsparse.data import ImageSet, streams
from jaxsparse.training.continual import make_stream, program
from jaxsparse.training.online import make_program
from jaxsparse.training.online.pretrain_program import make_pretraining, pretraining_key


class Notes:
    """The keys that bits were drawn from, and those that were split."""

    def __init__(self):
        self.drawn: Counter[tuple[int, ...]] = Counter()
        self.parents: set[tuple[int, ...]] = set()

    def check(self, least, times, anew):
        jax.effects_barrier()
        assert len(self.drawn) >= least, len(self.drawn)
        again = {key for key, count in self.drawn.items() if count > times}
        assert not again - anew
        assert not self.drawn.keys() & self.parents


NOTES = [Notes()]
THREEFRY = extended.threefry_prng_impl


def note_draw(key):
    NOTES[-1].drawn[tuple(np.asarray(key).tolist())] += 1


def note_parent(key):
    NOTES[-1].parents.add(tuple(np.asarray(key).tolist()))


def random_bits(key, width, shape):
    jax.debug.callback(note_draw, key)
    return THREEFRY.random_bits(key, width, shape)


def split(key, shape):
    jax.debug.callback(note_parent, key)
    return THREEFRY.split(key, shape)


def fold_in(key, data):
    jax.debug.callback(note_parent, key)
    return THREEFRY.fold_in(key, data)


NOTING = extended.define_prng_impl(
    key_shape=(2,), seed=THREEFRY.seed, split=split, random_bits=random_bits, fold_in=fold_in,
    name="noting", tag="noting",
)  # fmt: skip


@contextlib.contextmanager
def noted(least, times=1, anew=()):
    """Check that the code within draws `times` times from each key, and from at least `least` keys.

    The keys `anew` may repeat the same draw any number of times.
    """
    notes = Notes()
    NOTES.append(notes)
    try:
        yield
        notes.check(least, times, {tuple(jax.random.key_data(key).tolist()) for key in anew})
    finally:
        NOTES.pop()


def key_of(seed, make=jax.random.key):
    return make(seed, impl=NOTING)


def test_the_records_of_the_keys_are_right():
    key = key_of(0)
    with noted(2):
        a, b = jax.random.split(key)
        jax.vmap(jax.random.bits)(jnp.stack([a, b]))
    for twice in (
        lambda: [jax.random.bits(k) for k in (*jax.random.split(key), jax.random.fold_in(key, 1))],
        lambda: [jax.random.bits(key), jax.random.bits(jax.random.fold_in(key, 7))],
    ):  # fmt: skip
        with pytest.raises(AssertionError), noted(1):
            twice()


def test_the_order_of_rows_and_the_gate_draw_from_different_keys():
    gate = gates.Gate(
        lambda key, params: jnp.full((6,), 0.2),
        lambda m, key: m * jax.random.uniform(key, (6,)),
        stochastic=True,
    )
    state = init_lamaml_state(jnp.zeros(6), gate, jax.random.key(0), mask_optimizer=None)

    def loss_fn(w, rows):
        return jnp.mean((w[None] - rows) ** 2)

    with noted(2, times=2):  # the gate draws again for the new mask: the same bits
        _, metrics = lamaml_step(
            state, jnp.ones((6, 6)), None, key_of(1), loss_fn=loss_fn, gate=gate,
            mask_optimizer=None,
        )  # fmt: skip
    order = jax.random.permutation(jax.random.key(1), 6)
    np.testing.assert_array_equal(metrics["order"], order)


@pytest.mark.parametrize("method", ["sparse-lamaml", "er", "mer", "agem", "iid"])
def test_runs_over_streams(method):
    stream = streams.permutations(labelled(0, 60), labelled(1, 40), tasks=3)
    config = dataclasses.replace(
        STREAM_RUN, method=method, epochs=2, memories=12, replay_passes=2, init="xavier"
    )
    # Each batch computes the order of its task's pass again.
    order = jax.random.fold_in(jax.random.key(0), program._ORDER)
    orders = [jax.random.fold_in(order, 1000 * task + done) for task in range(3) for done in (0, 1)]
    orders = [jax.random.split(key)[1] for key in orders]  # keys of the permutations
    # Images of each task, three tensors, all passes except the first, replayed and offered rows.
    with noted(4 + 3 * 2 + (18 if method != "iid" else 0), anew=orders):
        jax.block_until_ready(quick_jit(make_stream(config, stream))(key_of(0), stream))


def few_shot_images():
    images = np.random.default_rng(0).integers(256, size=(4, 3, 16, 16, 1)).astype(np.uint8)
    names = tuple(map(str, range(4)))
    return ImageSet(images, np.full(4, 3, np.int32), names, (0.0,), (1.0,))


@pytest.mark.slow
def test_few_shot_runs_with_generated_masks(monkeypatch):
    monkeypatch.setattr(nn, "conv4", few_shot_model)
    config = training.FewShotConfig(
        method="sparse-maml-plus", ways=2, shots=1, query_shots=2, width=2, inner_steps=1,
        meta_batch_size=2,
    )  # fmt: skip
    data = few_shot_images()
    program = training.make_program(config, data.image_shape)
    state = jax.jit(program.init)(jax.random.key(0))
    # Without the mask's first values: draws that a leaf does not use are recorded, too.
    state = state._replace(meta=state.meta._replace(key=jax.random.split(key_of(7))[0]))
    key = key_of(0)
    with noted(2 * (2 + 2) + 2 + 20):
        trained = jax.jit(program.train)(state, key, data, 2)
        tasks = jax.jit(program.tasks)(jax.random.fold_in(key, 3), data)
        jax.block_until_ready(
            jax.jit(program.evaluate)(
                trained.meta.params, trained.meta.mask, jax.random.fold_in(key, 3), tasks
            )
        )


def test_a_pretraining_and_a_stream_of_one_seed(monkeypatch):
    """Also the pairs that C-MAML draws."""
    monkeypatch.setattr(nn, "conv4", small_model)
    config = dataclasses.replace(ONLINE_RUN, method="sparse-cmaml", pairs="one", timesteps=6)
    program, pretraining = make_program(config, DATA), make_pretraining(config, DATA)
    monkeypatch.setattr(jax.random, "key", key_of)
    with noted(6 * 3 + 4 * 3):
        key = jax.random.key(0)
        state = program.init(key, ())
        jax.block_until_ready(quick_jit(program.train)(state, key, DATA, 6))
        key = pretraining_key(config)
        before = quick_jit(pretraining.init)(key)
        before = quick_jit(pretraining.train)(before, key, DATA, 2)
        jax.block_until_ready(quick_jit(pretraining.validate)(before, key, DATA, 2))
