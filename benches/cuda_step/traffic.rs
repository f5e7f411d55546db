//! What each kernel moves in a step, from its header comment.

use topk_sae::backend::cuda::device::Element;
use topk_sae::backend::cuda::work::{BLOCKS, CHUNKS};

/// Sizes that traffic follows from.
pub struct Shape {
    pub n: usize,
    pub d: usize,
    pub pitch: usize,
    pub m: usize,
    /// Entries a row: k, or its candidates.
    pub entries: usize,
    pub element: Element,
    pub tied: bool,
    pub soft: bool,
}

/// Bytes of a step.
#[derive(Clone, Copy, Default)]
pub struct Traffic {
    /// Each input read once and each output written once.
    pub memory: f64,
    /// Rows gathered, as often as they are: these come from the L2 cache for the most part.
    pub gathered: f64,
}

/// Bytes that all launches of `kernel` move in one step; `None` where nobody counted.
pub fn of(kernel: &str, s: &Shape) -> Option<Traffic> {
    let [n, d, p, m, held] = [s.n, s.d, s.pitch, s.m, s.entries].map(|v| v as f64);
    let [blocks, chunks] = [BLOCKS.min(s.m), CHUNKS.min(s.n.div_ceil(32))].map(|v| v as f64);
    let e = s.element.size() as f64;
    let (entries, scores, operand) = (n * held, n * m * e, n * p * e);
    let (hard, soft) = if s.soft { (0.0, 1.0) } else { (1.0, 0.0) };
    let matrices = if s.tied { 1.0 } else { 2.0 };
    let (memory, gathered) = match kernel {
        _ if kernel.starts_with("gather_norm") => (4.0 * n * d + operand + 12.0 * n, 0.0),
        _ if kernel.starts_with("topk") => (scores + 8.0 * entries, 0.0),
        // W_dec's rows twice in the hard phase; once where dh is a dense product.
        _ if kernel.starts_with("decode") => {
            (4.0 * n * d + operand + soft * 4.0 * n * p + 12.0 * entries, (1.0 + hard) * entries * p * e)
        }
        _ if kernel.starts_with("latent_update") => {
            // Weights and both moments read and written, and the rounded copy; a dense gradient in the warm-up.
            let copy = if s.element == Element::Bf16 { 2.0 } else { 0.0 };
            let a_weight = 24.0 + copy + soft * 4.0;
            (matrices * m * p * a_weight + 8.0 * blocks * p, hard * 2.0 * entries * p * e)
        }
        "index_count" => (4.0 * entries + 4.0 * m, 0.0),
        "index_scan" => (20.0 * m, 0.0),
        "index_fill" => (8.0 * entries + 8.0 * m, 0.0),
        "index_order" => (8.0 * entries + 4.0 * m, 0.0),
        "fire_top" => (8.0 * entries + 4.0 * m, 0.0),
        _ if kernel.starts_with("gate_") => (16.0 * entries + 4.0 * n, 0.0),
        _ if kernel.starts_with("soft_weights") => (2.0 * scores, 0.0),
        _ if kernel.starts_with("soft_gradients") => (4.0 * scores, 0.0),
        // dy', the blocks' parts, and in the warm-up the scores' gradients.
        _ if kernel.starts_with("column_sums") => {
            let sums = 8.0 * chunks * (p + soft * m);
            (operand + 4.0 * blocks * p + soft * scores + sums, 0.0)
        }
        "add_chunks" => (8.0 * chunks * (p + soft * m), 0.0),
        "update_pre_bias" => (32.0 * d, 0.0),
        "count_idle" => (16.0 * m, 0.0),
        "finish_loss" => (28.0 * n, 0.0),
        "zero" => (4.0 * blocks * p + hard * 4.0 * m, 0.0),
        _ => return None,
    };
    Some(Traffic { memory, gathered })
}
