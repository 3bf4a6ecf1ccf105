"""Rooms: product files, and the tests that must notice a change in them. A room's tests take at most 20 s."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """Some product files and their tests.

    Attributes:
        files: that are changed.
        tests: pytest paths, quickest first: the first failure ends a trial.
        without: ends of the names of tests that are left out, because they wait for processes.
        mutants: how many are drawn.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]
    without: tuple[str, ...] = ()
    mutants: int = 25


ROOMS = {
    "samplers": Room(
        files=(
            "trainer/samplers/class_balanced.py",
            "trainer/samplers/epoch.py",
            "trainer/samplers/mix.py",
            "trainer/samplers/slices.py",
            "trainer/samplers/topical.py",
            "trainer/samplers/uniform.py",
        ),
        tests=("tests/trainer/samplers",),
    ),
    "loader": Room(
        files=(
            "trainer/data/batch.py",
            "trainer/data/buffers.py",
            "trainer/data/columns.py",
            "trainer/data/inputs.py",
            "trainer/data/loader.py",
            "trainer/data/order_identity.py",
            "trainer/data/stream.py",
            "trainer/data/workers.py",
        ),
        tests=(
            "tests/trainer/data/test_batch.py",
            "tests/trainer/data/test_buffers.py",
            "tests/trainer/data/test_inputs.py",
            "tests/trainer/data/test_order_identity.py",
            "tests/trainer/data/test_columns.py",
            "tests/trainer/data/test_loader.py",
            "tests/trainer/data/test_stream.py",
            "tests/trainer/data/test_eval_loader.py",
        ),
        without=(
            "test_a_program_that_forgets_to_close_its_loader_ends",
            "test_a_killed_worker_is_an_error_and_no_hang",
        ),
        mutants=30,
    ),
    "ledger": Room(
        files=("trainer/data/ledger.py",),
        tests=("tests/trainer/data/test_ledger.py", "tests/trainer/data/test_columns.py"),
        without=("test_ranks_give_the_account_of_one_process", "test_damage_is_counted_over_the_ranks"),
    ),
    "augmentation": Room(
        files=(
            "trainer/pictures/draw.py",
            "trainer/pictures/colours.py",
            "trainer/pictures/resample.py",
            "trainer/pictures/augment.py",
            "core/seeding.py",
        ),
        tests=("tests/core/test_seeding.py", "tests/trainer/test_augment.py", "tests/trainer/samplers/test_epoch.py"),
        mutants=30,
    ),
    "columns": Room(
        files=("core/columns.py", "core/column_values.py", "core/column_kind.py"),
        tests=(
            "tests/core/test_fields.py",
            "tests/core/test_columns.py",
            "tests/core/test_column_kind.py",
            "tests/trainer/data/test_columns.py",
        ),
    ),
    "manifest": Room(
        files=("core/manifest.py", "core/fields.py"),
        tests=("tests/core/test_manifest.py", "tests/core/test_fields.py"),
        mutants=20,
    ),
    "objectives": Room(
        files=(
            "trainer/objectives/closed_form.py",
            "trainer/objectives/engine.py",
            "trainer/objectives/infonce.py",
            "trainer/objectives/negatives.py",
            "trainer/objectives/nt_xent.py",
            "trainer/objectives/objective.py",
            "trainer/objectives/pairs.py",
            "trainer/objectives/siglip.py",
            "trainer/objectives/supcon.py",
        ),
        tests=("tests/trainer/objectives",),
        mutants=40,
    ),
    "step": Room(
        files=(
            "trainer/step/forward_backward.py",
            "trainer/step/nonfinite.py",
            "trainer/step/proof.py",
        ),
        tests=("tests/trainer/step",),
        without=(
            "test_gradients_travel_once_per_step_whatever_the_number_of_chunks",
            "test_a_trained_text_tower_in_chunks_and_ranks_is_that_of_one_batch",
            "test_a_scalar_that_the_loss_leaves_out_gets_zero_at_every_step",
            "test_right_paths_pass",
            "test_accelerates_autocast_is_kept_out_and_put_back",
            "test_a_planted_defect_is_named_on_every_rank",
            "test_a_gather_without_gradient_is_seen_by_objectives_of_pictures",
            "test_a_model_without_ddp_is_caught",
            "test_a_scalar_that_gets_no_gradient_is_caught",
            "test_the_sentence_says_group_ratio_and_cause",
            "test_a_state_that_differs_between_ranks_is_caught",
            "test_a_relation_that_does_not_matter_is_caught",
        ),
        mutants=40,
    ),
    "state": Room(
        files=(
            "trainer/checkpoint/files.py",
            "trainer/checkpoint/folder.py",
            "trainer/checkpoint/weights.py",
            "trainer/optim/build.py",
            "trainer/optim/ema.py",
        ),
        tests=("tests/trainer/checkpoint", "tests/trainer/optim"),
        mutants=70,
    ),
    "fingerprint": Room(
        files=("shard_builder/fingerprint.py", "core/shard_index.py"),
        tests=(
            "tests/core/test_shard_index.py",
            "tests/core/test_fields.py",
            "tests/shard_builder/test_fingerprint.py",
        ),
        without=(  # whole builds
            "test_another_filter_is_refused_by_name",
            "test_an_older_set_is_already_built_and_has_the_same_samples",
            "test_an_older_unfinished_build_goes_on",
            "test_the_samples_fingerprint_is_of_samples_and_their_order_alone",
        ),
    ),
}

# Not drawn from: lines that only set how fast something is; options that do, or that check what we ourselves promise.
HINTS = ("_MAX_PART_ROWS = ", "lru_cache(maxsize=")
OPTIONS = ("non_blocking", "strict")
