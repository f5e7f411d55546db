"""The options of a training, as a type checker sees them.

Made from the table of options: SAE_WRITE_DOCS=1 cargo test --test docs
"""

from __future__ import annotations

from typing import Literal, TypedDict


class Options(TypedDict, total=False):
    """The options of `sae train`, with `_` in place of `-`; None is the default."""

    # Data
    # Dataset or group inside the files that holds the rows; `*` stands for one component of a path [default: found
    # by itself]
    dataset: str | None
    # Take an axis at one index, as in 0=33 (both count from 0); several with commas [default: none]
    index: str | None
    # Rows are the last axis of a matrix [default: false]
    transpose: bool | None
    # What integers of 16 bits stand for [default: integers]
    stored_as: Literal["bfloat16"] | None
    # What says which ids stay in one split: a dataset beside the matrix, or @ and an attribute of each dataset
    # [default: each id alone]
    group_by: str | None
    # The columns of --groups are group and id [default: false]
    groups_reversed: bool | None
    # Table of id and split (train, val, test), in place of a split by the ids' hashes [default: by hash]
    splits: str | None
    # Drop and count rows that are not finite or have an id seen before: up to a tenth of all, or `all` that there
    # are [default: false]
    skip_bad_rows: bool | Literal["all"] | None
    # Memory for rows, such as 8G, or `all`; rows that need more stay in their files and are read in windows
    # [default: half of what is free]
    memory: float | Literal["all"] | None
    # Seed of the split alone, for runs of several seeds on the same split [default: as --seed]
    split_seed: int | None

    # Model
    # Defaults to start from [default: data-topk]
    preset: Literal["data-topk", "relaxed-topk", "topk", "sparse-l1"] | None
    # Latents, M [default: 8 D; sparse-l1: 2048]
    latents: int | None
    # Decoder and encoder are one tensor [default: false]
    tied: bool | None
    # Normalise each row before the encoder and undo it after the decoder [default: true; sparse-l1: false]
    normalize: bool | None
    # Added to each row's standard deviation [default: 1e-5, or 2e-4 of the usual deviation where that is below
    # 0.01; relaxed-topk: 1e-5]
    norm_eps: float | None
    # The pre-bias [default: mean; relaxed-topk: zero; topk: median; sparse-l1: none]
    pre_bias: Literal["none", "zero", "mean", "median"] | None
    # Start of the weights [default: data; relaxed-topk: linear; topk: unit-norm; sparse-l1: xavier]
    init: Literal["linear", "xavier", "unit-norm", "data"] | None
    # Gain of --init xavier [default: 1; sparse-l1: 0.1]
    init_gain: float | None

    # Sparsity
    # Active latents per row, k; their mean where the activation has no places per row [default: 32; sparse-l1: 30]
    k: int | None
    # What makes a code of scores [default: topk]
    activation: Literal["topk", "abs-topk", "batch-topk", "jumprelu", "relu"] | None
    # Codes outside training: those of the activation, or, with topk, relu of all scores [default: as the
    # activation]
    inference: Literal["topk", "relu", "threshold"] | None
    # Numbers of latents that reconstruct on their own (Matryoshka), rising, as in 256,1024,4096, or `auto` for
    # M/32, 3M/32, 7M/32, 15M/32; M itself is added [default: none]
    prefixes: int | Literal["auto"] | None
    # What stands in for the exact top k during the warm-up [default: lapsum; relaxed-topk: softmax; topk,
    # sparse-l1: none]
    relaxation: Literal["softmax", "lapsum", "anneal-k", "none"] | None
    # Steps of the relaxed warm-up, T; 0 is none [default: 2000 or half the steps if fewer; topk, sparse-l1: 0]
    anneal_steps: int | None
    # Candidates per row in the warm-up of lapsum and anneal-k [default: 4 k, at most 1024]
    pool: int | None
    # Temperature at the first step [default: 0.5; other presets: 1]
    tau_start: float | None
    # Temperature at the end of the warm-up [default: 0.05]
    tau_end: float | None
    # What keeps codes sparse, beside or in place of k places [default: mean-code; with --activation relu l1, with
    # jumprelu l0-target]
    penalty: Literal["mean-code", "l1", "l0-target", "l0", "l0-rows"] | None
    # Weight of --penalty mean-code or l1, beside --loss-scale times the squared error [default: 0; with
    # --activation relu what gives k active latents per row; sparse-l1: 0.1]
    l1: float | None
    # Epochs over which the L1 weight rises from 0 [default: 0; sparse-l1: 50]
    l1_warmup: int | None
    # Weight of the penalties of --activation jumprelu, beside --loss-scale times the squared error [default: 1]
    l0_weight: float | None
    # Steps over which that weight rises from 0 [default: a tenth of the steps]
    l0_warmup: int | None
    # Width of the kernel through which the thresholds of --activation jumprelu are trained, in units of the scores
    # [default: 0.01 times the length of a usual row as the encoder sees it]
    bandwidth: float | None
    # Dead latents that the auxiliary loss uses per row; 0 is none [default: 0; topk: 64, or D/2 if fewer]
    aux_k: int | None
    # Weight of the auxiliary loss [default: 0.03125]
    aux_coef: float | None
    # Rows without firing after which a latent is dead to the auxiliary loss [default: two epochs, at most 10
    # million]
    dead_after: int | None

    # Optimiser
    # Learning rate, or `auto` for 2e-4 / sqrt(M / 2^14) [default: 0.003; relaxed-topk: 0.001; sparse-l1: 0.0005]
    lr: float | Literal["auto"] | None
    # Learning rate after its warm-up [default: constant; sparse-l1: cosine]
    lr_schedule: Literal["constant", "cosine", "linear"] | None
    # Steps over which the learning rate rises from 0 [default: 0]
    lr_warmup: int | None
    # Factor on the loss before gradients are taken, so that they do not depend on the data's unit; reported losses
    # are without it [default: 1 / variance of the training rows; relaxed-topk, sparse-l1: 1]
    loss_scale: float | None
    # Largest global gradient norm, of --loss-scale times the loss; 0 is no clipping [default: 0; topk, sparse-l1:
    # 1]
    clip_norm: float | None
    # Decoupled weight decay of the matrices [default: 0.1; other presets: 0]
    weight_decay: float | None
    # Adam's decay of the first moment [default: 0.9]
    adam_b1: float | None
    # Adam's decay of the second moment [default: 0.99; other presets: 0.999]
    adam_b2: float | None
    # Added to the root of Adam's second moment [default: 8e-6; relaxed-topk, sparse-l1: 1e-8; topk: 6.25e-10]
    adam_eps: float | None
    # Keep decoder rows at length 1 [default: false; topk: true]
    unit_norm_decoder: bool | None
    # Decay of a moving average of the weights, used for evaluation and export; 0 is none [default: 0.999;
    # relaxed-topk, sparse-l1: 0]
    ema: float | None

    # Schedule
    # Training steps [default: 5000; sparse-l1: 200 epochs]
    steps: int | None
    # Passes over the training rows, instead of --steps
    epochs: float | None
    # Rows per step, N, or `full` for all training rows [default: 512, or all rows if fewer; sparse-l1: full]
    batch_size: int | Literal["full"] | None
    # Stop after this many evaluations without a better validation FVU and keep the best; 0 is never [default: 5;
    # other presets: 0]
    early_stop: int | None

    # Run
    # Seed of split, start, order and noise [default: 0]
    seed: int | None
    # Steps between evaluations [default: a twentieth of the steps]
    eval_every: int | None
    # Most rows of each split in an evaluation on the way, or `all` [default: 2.7 % of the rows trained since the
    # last one, 200 to 20,000]
    eval_rows: int | Literal["all"] | None
    # Most rows of each split in the figures at the end, or `all` [default: 4 % of the rows trained, at least 1000]
    final_rows: int | Literal["all"] | None
    # Steps between checkpoints [default: as --eval-every]
    checkpoint_every: int | None
    # Checkpoints kept beside the best one [default: 2]
    keep_checkpoints: int | None
    # Write the figures of metrics.csv as events for TensorBoard too: `tensorboard --logdir RUN` [default: false]
    tensorboard: bool | None
    # Arithmetic of the dense products; tf32 and bf16 on a GPU only. Weights and moments are float32 always
    # [default: f32]
    precision: Literal["f32", "tf32", "bf16"] | None
