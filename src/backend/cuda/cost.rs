//! A step of several ranks on paper: what each computes, moves and sends, from counts and published rates. None of it was
//! measured on several cards, and kernel launches and uneven lists are left out: it is a floor, not a forecast.
//!
//! It is the hard phase of plain top-k, as `ranks.rs` lays it out: every rank has M / G latents and all N rows. On one rank it is
//! the floor of a step in `tests/kernels/estimate.rs`. Sizes are in bytes, rates per second.

use crate::spec::{ModelSpec, Precision};

/// A model and its batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Inputs, D.
    pub d_in: usize,
    /// Latents of the whole model, M.
    pub n_latents: usize,
    /// Rows of a batch, over all ranks, N.
    pub rows: usize,
    /// Active latents per row, k.
    pub k: usize,
    /// Dead latents per row in the auxiliary loss, or 0.
    pub aux_k: usize,
    /// One matrix in place of two.
    pub tied: bool,
    /// A moving average of the weights.
    pub average: bool,
    /// Clipping by the global norm, which keeps the gradients until it is known.
    pub clip: bool,
    /// Bytes of a score, and of an element that the product and the gathers read: 4, or 2 of bfloat16.
    pub bytes: usize,
    /// Operations per second of the dense product: [`F32`], [`TF32`] or [`BF16`].
    pub flops: f64,
    /// Bytes of a row that ranks bring each other; 0 where each of them has all rows.
    pub row_bytes: usize,
}

/// Ranks, and how many of them share a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// Ranks, one GPU each, G.
    pub ranks: usize,
    /// Ranks of a node, which NVLink connects; nodes meet over one network adapter per GPU.
    pub per_node: usize,
}

/// Rates of one GPU and of what connects it; figures and sources are those of [`H100`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Bytes of device memory, 10^9 per GB: 80 GB (nvidia.com/en-us/data-center/h100).
    pub capacity: f64,
    /// Bytes per second to and from it: 0.9 of that page's 3.35 TB/s (`benches/runs/2026-11-26-h100` filled it at 3.19 TB/s).
    pub memory: f64,
    /// Bytes of the second-level cache: 50 MB (NVIDIA H100 Tensor Core GPU Architecture).
    pub cache_size: f64,
    /// Bytes per second from it: 5.5 TB/s, as in `tests/kernels/estimate.rs`.
    pub cache: f64,
    /// Bytes per second that a rank sends in a ring within a node (nccl-tests' "busbw"): 361 GB/s in an all-gather over 8 H200,
    /// which have the same NVLink, and 367 in an all-reduce (stas00/ml-engineering, network, commit 744d01e).
    pub nvlink: f64,
    /// Bytes per second of a GPU's adapter: 46 to 48 of InfiniBand NDR's 50 GB/s (github.com/NVIDIA/nccl-tests/issues/290).
    pub network: f64,
}

/// An H100 SXM with NVLink 4 and one InfiniBand NDR adapter of 400 Gb/s per GPU.
pub const H100: Machine =
    Machine { capacity: 80e9, memory: 3e12, cache_size: 50e6, cache: 5.5e12, nvlink: 361e9, network: 46e9 };
/// An H200: 141 GB, and 0.9 of 4.8 TB/s (nvidia.com/en-us/data-center/h200).
pub const H200: Machine = Machine { capacity: 141e9, memory: 4.3e12, ..H100 };

/// Operations per second in float32 products of 8192^3 on an H100: `benches/runs/2026-11-26-h100`.
pub const F32: f64 = 51e12;
/// In TF32: 494.5e12 dense by the data sheet, of which the share that bfloat16 reaches.
pub const TF32: f64 = 395e12;
/// In bfloat16: 794.5e12 of 989e12 reached (stas00/ml-engineering, compute/accelerator, commit 744d01e).
pub const BF16: f64 = 790e12;
/// Seconds that a small collective takes within a node: an all-reduce of 32 KiB over 8 H200 (stas00/ml-engineering, network).
pub const IN_NODE: f64 = 40e-6;
/// Seconds of NVLS, and of each network hop of NVLSTree: `NVIDIA/nccl` src/graph/tuning.cc, commit 5067397.
pub const TREE: (f64, f64) = (25e-6, 20.9e-6);
/// Seconds of a ring (Simple), of each of its steps over NVLink and of each over the network: the same file.
pub const RING: (f64, f64, f64) = (8.4e-6, 3.4e-6, 14e-6);
/// Sums of squares that ranks add up where the norm is clipped.
const SQUARES: f64 = 1024.0;

/// Bytes that a rank sends in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sent {
    /// Best k of every row, and best aux_k: latent, value, and a count per row; all-gathered.
    pub candidates: f64,
    /// Parts of the reconstructions, and of the auxiliary one; all-reduced.
    pub reconstructions: f64,
    /// Facts of rows (3 N float64), the part of b_pre's gradient (D float64), dead latents, the norm; all-reduced.
    pub sums: f64,
    /// Rows of a batch of which each rank read some; all-reduced as whole words.
    pub rows: f64,
    /// Gradients of all weights; all-reduced. Data parallelism alone sends them.
    pub gradients: f64,
}

/// What a step costs each rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// The encoder's product alone, 2 N D M / G operations: seconds.
    pub arithmetic_s: f64,
    /// All that is moved between memory and chip beside that product's operands: scores, rows of entries, Adam, rows: seconds.
    pub memory_s: f64,
    /// Collectives, which no kernel overlaps: seconds.
    pub exchange_s: f64,
    /// The step: the product's arithmetic, or its operands if they take longer, then `memory_s`, then `exchange_s`.
    pub step_s: f64,
    /// Bytes sent.
    pub sent: Sent,
}

impl Shape {
    /// Values in a stored row, D rounded up to a multiple of 8.
    fn pitch(&self) -> f64 {
        self.d_in.next_multiple_of(8) as f64
    }

    /// Weights of matrices over all ranks: M D, twice unless tied.
    fn weights(&self) -> f64 {
        self.n_latents as f64 * self.pitch() * if self.tied { 1.0 } else { 2.0 }
    }
}

impl Cluster {
    /// Nodes.
    pub fn nodes(&self) -> usize {
        self.ranks.div_ceil(self.per_node.max(1))
    }

    /// Bytes that a rank sends of an all-reduce of `bytes`: 2 (G - 1) / G of them (nccl-tests, doc/PERFORMANCE.md).
    pub fn all_reduced(&self, bytes: f64) -> f64 {
        2.0 * self.all_gathered(bytes)
    }

    /// Bytes that a rank sends of an all-gather that gives `bytes` to each: (G - 1) / G of them (the same page).
    pub fn all_gathered(&self, bytes: f64) -> f64 {
        bytes * (self.ranks as f64 - 1.0) / self.ranks as f64
    }

    /// Bytes per second that a rank sends: a ring crosses a node's border with all its adapters at once.
    pub fn bandwidth(&self, machine: &Machine) -> f64 {
        let border = self.per_node.min(self.ranks) as f64 * machine.network;
        if self.nodes() == 1 { machine.nvlink } else { machine.nvlink.min(border) }
    }

    /// Seconds of an all-reduce beside its bytes: 25 + 2 log2(nodes) 20.9 us by NCCL's own model, [`IN_NODE`] at least.
    pub fn all_reduce_latency(&self) -> f64 {
        let levels = self.nodes().next_power_of_two().ilog2();
        IN_NODE.max(TREE.0 + 2.0 * f64::from(levels) * TREE.1)
    }

    /// Seconds of an all-gather beside its bytes: a ring of G - 1 steps, of which nodes - 1 over the network; likewise.
    pub fn all_gather_latency(&self) -> f64 {
        let nodes = self.nodes();
        IN_NODE.max(RING.0 + (self.ranks - nodes) as f64 * RING.1 + (nodes - 1) as f64 * RING.2)
    }
}

impl Sent {
    /// What a rank of several that share out the latents sends.
    pub fn of(s: &Shape, c: &Cluster) -> Self {
        let (n, aux) = (s.rows as f64, s.aux_k > 0);
        let words = (2 * s.k + 1) + if aux { 2 * s.aux_k + 1 } else { 0 };
        let planes = if aux { 2.0 } else { 1.0 };
        let squares = if s.clip { 8.0 * SQUARES } else { 0.0 };
        Self {
            candidates: c.all_gathered(4.0 * n * words as f64 * c.ranks as f64),
            reconstructions: c.all_reduced(4.0 * n * s.pitch() * planes),
            sums: c.all_reduced(24.0 * n + 8.0 * s.pitch() + 4.0 + squares),
            rows: c.all_reduced((s.rows * s.row_bytes).next_multiple_of(4) as f64),
            gradients: 0.0,
        }
    }

    /// All of it.
    pub fn bytes(&self) -> f64 {
        self.candidates + self.reconstructions + self.sums + self.rows + self.gradients
    }
}

impl Cost {
    /// A step of ranks that share out the latents.
    pub fn of(s: &Shape, c: &Cluster, machine: &Machine) -> Self {
        let (n, g, aux) = (s.rows as f64, c.ranks as f64, if s.aux_k > 0 { 1.0 } else { 0.0 });
        // Sums are float32: written, read for the loss and again for the entries; gathered candidates are read once.
        let shared = 12.0 * n * s.pitch() * (1.0 + aux) + 8.0 * n * (s.k + s.aux_k) as f64 * g;
        // Collectives: top k; sums of rows; b_pre; dead latents. The auxiliary loss gathers once more; the norm is one more sum, and so
        // are rows that ranks bring each other.
        let sums = (3 + usize::from(s.clip) + usize::from(s.row_bytes > 0)) as f64;
        let latency = (1.0 + aux) * c.all_gather_latency() + sums * c.all_reduce_latency();
        let shared = if c.ranks > 1 { shared } else { 0.0 };
        Self::new((s, c, machine), (n, g), (shared, s.clip), (Sent::of(s, c), latency))
    }

    /// The same N rows shared out over ranks that have the whole model each: gradients of all weights are all-reduced once they
    /// are there. Trainers hide some of it behind the backward pass; `exchange_s` alone is what no overlap goes below.
    pub fn data_parallel(s: &Shape, c: &Cluster, machine: &Machine) -> Self {
        let values = s.weights() + (s.n_latents + s.d_in) as f64;
        let sent = Sent { gradients: c.all_reduced(4.0 * values), ..Sent::default() };
        let split = (s.rows as f64 / c.ranks as f64, 1.0);
        let kept = s.clip || c.ranks > 1;
        Self::new((s, c, machine), split, (0.0, kept), (sent, c.all_reduce_latency()))
    }

    /// `n` rows on M / `parts` latents, N k / G entries either way; `shared` bytes besides, and gradients that wait for others.
    fn new(
        (s, c, machine): (&Shape, &Cluster, &Machine),
        (n, parts): (f64, f64),
        (shared, kept): (f64, bool),
        (sent, latency): (Sent, f64),
    ) -> Self {
        let (d, m, e) = (s.pitch(), s.n_latents as f64 / parts, s.bytes as f64);
        let arithmetic_s = 2.0 * n * d * m / s.flops;
        let operands_s = (m + n) * d * e / machine.memory;
        let rate = |held: f64| if held <= machine.cache_size { machine.cache } else { machine.memory };
        // Rows of the decoder, twice where a sum over ranks stands between; rows of dy' and x', for the gradients.
        let passes = if shared > 0.0 { 2.0 } else { 1.0 };
        let entries = s.rows as f64 * (s.k + s.aux_k) as f64 / c.ranks as f64;
        let gathers_s = entries * d * e * (passes / rate(m * d * e) + 2.0 / rate(2.0 * n * d * e));
        // Scores are written once, and read by each selection.
        let scores = n * m * e * if s.aux_k > 0 { 3.0 } else { 2.0 };
        // Weights and moments are read and written, and so are an average and gradients that are kept; the copy is written.
        let copy = if s.bytes == 2 { 2.0 } else { 0.0 };
        let each = 24.0 + copy + if s.average { 8.0 } else { 0.0 } + if kept { 8.0 } else { 0.0 };
        // Rows read, normalised and written; dy' written.
        let moved = scores + s.weights() / parts * each + n * d * (4.0 + 2.0 * e) + shared;
        let memory_s = gathers_s + moved / machine.memory;
        let exchange_s = if c.ranks == 1 { 0.0 } else { latency + sent.bytes() / c.bandwidth(machine) };
        let step_s = arithmetic_s.max(operands_s) + memory_s + exchange_s;
        Self { arithmetic_s, memory_s, exchange_s, step_s, sent }
    }
}

/// Bytes of device memory of each rank in a step of [`example`], without what libraries need for themselves; with `whole` models,
/// those of data parallelism, whose gradients of all weights lie beside them.
fn bytes_of(s: &Shape, ranks: usize, whole: bool) -> f64 {
    let spec = ModelSpec::plain(s.k);
    let of = |ranks, rows| {
        super::memory_of(&spec, s.d_in, (s.n_latents, ranks), s.tied, rows, Precision::Bf16) as f64
    };
    if whole { of(1, s.rows / ranks) + 4.0 * s.weights() } else { of(ranks, s.rows) }
}

fn size(bytes: f64) -> String {
    match bytes {
        b if b >= 0.9995e12 => format!("{:.1} TB", b / 1e12),
        b if b >= 99.5e9 => format!("{:.0} GB", b / 1e9),
        b if b >= 0.9995e9 => format!("{:.1} GB", b / 1e9),
        b => format!("{:.0} MB", b / 1e6),
    }
}

fn fit(bytes: f64) -> String {
    let fits = [(H100.capacity, ""), (H200.capacity, ", does not fit an H100"), (f64::MAX, ", does not fit")];
    let words = fits.iter().find(|(capacity, _)| bytes <= *capacity).map_or("", |&(_, words)| words);
    size(bytes) + words
}

fn milliseconds(seconds: f64) -> String {
    let ms = 1e3 * seconds;
    format!("{ms:.*} ms", if ms < 9.995 { 2 } else { usize::from(ms < 99.95) })
}

/// What the table in the book is of: N 4096, k 64, untied, bfloat16, neither auxiliary loss nor average nor clipping.
pub fn example(n_latents: usize, d_in: usize) -> Shape {
    let (rows, k, aux_k, bytes, flops, row_bytes) = (4096, 64, 0, 2, BF16, 0);
    let (tied, average, clip) = (false, false, false);
    Shape { d_in, n_latents, rows, k, aux_k, tied, average, clip, bytes, flops, row_bytes }
}

/// The book's table, as Markdown: [`example`] on H100, eight to a node.
pub fn table() -> String {
    let head =
        "| latents | D | GPUs | memory each | sent | step | exchanging | data parallel: step | its memory |";
    let mut text = format!("{head}\n|{}", " ---: |".repeat(9));
    for (power, d_in) in [17, 20, 22, 24].into_iter().flat_map(|p| [1024, 4096, 12_288].map(|d| (p, d))) {
        for ranks in [1, 8, 64] {
            let (s, c) = (example(1 << power, d_in), Cluster { ranks, per_node: 8 });
            let (cost, whole) = (Cost::of(&s, &c, &H100), Cost::data_parallel(&s, &c, &H100));
            let (memory, sent) = (fit(bytes_of(&s, ranks, false)), size(cost.sent.bytes()));
            let (step, share) = (milliseconds(cost.step_s), 100.0 * cost.exchange_s / cost.step_s);
            let beside = match ranks {
                1 => "the same | the same".into(),
                _ => format!("{} | {}", milliseconds(whole.step_s), fit(bytes_of(&s, ranks, true))),
            };
            text += &format!(
                "\n| 2^{power} | {d_in} | {ranks} | {memory} | {sent} | {step} | {share:.0} % | {beside} |"
            );
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Cluster = Cluster { ranks: 8, per_node: 8 };

    fn near(a: f64, b: f64, part: f64) -> bool {
        (a - b).abs() <= part * b.abs()
    }

    #[test]
    fn rings_send_what_their_formulas_say() {
        let s = Shape { rows: 16, d_in: 12, k: 3, ..example(1 << 17, 0) };
        // Seven blocks of 16 rows of 7 words; 7/4 of 16 x 16 float32; 7/4 of 48 + 16 float64 and a word.
        let sent = Sent::of(&s, &NODE);
        assert_eq!(
            sent,
            Sent { candidates: 3136.0, reconstructions: 1792.0, sums: 903.0, rows: 0.0, gradients: 0.0 }
        );
        assert_eq!(Sent::of(&Shape { row_bytes: 25, ..s }, &NODE), Sent { rows: 700.0, ..sent });
        let more = Sent::of(&Shape { aux_k: 5, clip: true, ..s }, &NODE);
        assert_eq!((more.candidates, more.reconstructions, more.sums), (8064.0, 3584.0, 903.0 + 14336.0));
        let alone = Cluster { ranks: 1, per_node: 8 };
        let cost = Cost::of(&s, &alone, &H100);
        assert!(cost.sent.bytes() == 0.0 && cost.exchange_s == 0.0);
        assert_eq!(Cost::data_parallel(&s, &alone, &H100), cost);
    }

    #[test]
    fn one_rank_has_the_floor_of_a_step() {
        let s = Shape { tied: true, ..example(16_384, 1024) };
        let cost = Cost::of(&s, &Cluster { ranks: 1, per_node: 1 }, &H100);
        // 702 us are the floor in `kernels/TRAFFIC.md`, which leaves out the rows themselves.
        assert!(near(cost.step_s, 702e-6, 0.02), "{cost:?}");
        assert!(near(cost.arithmetic_s, 174e-6, 0.01));
    }

    #[test]
    fn latencies_and_bandwidths_come_near_what_others_measured() {
        // All-reduce over 8 H200, stas00/ml-engineering: 32 KiB, 1, 4, 16 and 64 MiB.
        for (kib, us) in [(32.0, 39.8), (1024.0, 45.9), (4096.0, 68.5), (16_384.0, 133.5), (65_536.0, 339.0)]
        {
            let seconds = NODE.all_reduce_latency() + NODE.all_reduced(1024.0 * kib) / NODE.bandwidth(&H100);
            assert!(near(1e6 * seconds, us, 0.15), "{kib} KiB: {seconds}");
        }
        let nodes = Cluster { ranks: 64, per_node: 8 };
        assert!(near(nodes.all_reduce_latency(), 150.4e-6, 1e-9));
        assert!(near(nodes.all_gather_latency(), 296.8e-6, 1e-9));
        assert_eq!((nodes.nodes(), nodes.bandwidth(&H100)), (8, 361e9));
        assert_eq!(Cluster { ranks: 4, per_node: 2 }.bandwidth(&H100), 92e9);
    }

    #[test]
    fn more_ranks_have_less_to_do_each_and_more_to_send() {
        for s in [example(1 << 22, 4096), Shape { tied: true, aux_k: 256, ..example(1 << 20, 1024) }] {
            for ranks in [1, 2, 4, 8, 16, 32] {
                let [a, b] =
                    [ranks, 2 * ranks].map(|ranks| Cost::of(&s, &Cluster { ranks, per_node: 8 }, &H100));
                assert_eq!(b.arithmetic_s, a.arithmetic_s / 2.0);
                assert!(
                    b.memory_s < a.memory_s && b.exchange_s > a.exchange_s && b.sent.bytes() > a.sent.bytes()
                );
                assert!(bytes_of(&s, 2 * ranks, false) < bytes_of(&s, ranks, false));
            }
        }
    }

    #[test]
    fn data_parallelism_sends_all_weights_and_loses_until_a_batch_is_very_large() {
        let s = example(1 << 17, 1024);
        let (ours, other) = (Cost::of(&s, &NODE, &H100), Cost::data_parallel(&s, &NODE, &H100));
        assert_eq!(other.sent.gradients, 7.0 / 4.0 * 4.0 * (2.0 * 131_072.0 * 1024.0 + 132_096.0));
        assert_eq!(other.arithmetic_s, ours.arithmetic_s);
        assert!(other.step_s > 3.0 * ours.step_s);
        let tied = Cost::data_parallel(&Shape { tied: true, ..s }, &NODE, &H100).sent.bytes();
        assert!(near(2.0 * tied, other.sent.bytes(), 1e-3));
        // As many bytes at N = 2 M D / (D + k G).
        let even = Shape { rows: 2 * 131_072 * 1024 / (1024 + 64 * 8), ..s };
        assert!(near(Sent::of(&even, &NODE).bytes(), other.sent.bytes(), 0.01));
        assert!(bytes_of(&s, 8, true) > 6.0 * bytes_of(&s, 8, false));
    }

    #[test]
    fn the_table_has_a_line_of_each() {
        let text = table();
        let lines = text.lines().collect::<Vec<_>>();
        assert!(lines.len() == 38 && lines.iter().all(|line| line.matches('|').count() == 10));
        assert!(text.contains("does not fit an H100") && !text.contains("NaN") && !text.contains("inf"));
        assert_eq!([size(999.6e9), milliseconds(0.09996), fit(80e9)], ["1.0 TB", "100 ms", "80.0 GB"]);
    }
}
