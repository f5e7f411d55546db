//! Gumbel noise that needs no saved state: a pure function of (seed, step, row, latent).
//!
//! Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The key is the
//! seed (low word, high word). The counter of latent `j` of row `n` (its place in the batch) at step `s` is
//! `(32 (j / 128) + j % 32, n, s low, s high)`, and of its four words number `(j % 128) / 32` is taken: 32
//! neighbouring lanes of a GPU warp then draw four runs of 32 neighbouring latents.
//!
//! A word `u` becomes `U = (u >> 8) / 2^24`, exact in float32, on [0, 1).

const MUL0: u32 = 0xD251_1F53;
const MUL1: u32 = 0xCD9E_8D57;
const WEYL0: u32 = 0x9E37_79B9;
const WEYL1: u32 = 0xBB67_AE85;

/// Latents drawn by one group of 32 counters.
pub const GROUP: usize = 128;

/// Added inside both logarithms of the Gumbel transform.
pub const GUMBEL_EPS: f64 = 1e-9;

/// Four words from one counter.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL0), key[1].wrapping_add(WEYL1)];
        }
        let p0 = u64::from(MUL0) * u64::from(counter[0]);
        let p1 = u64::from(MUL1) * u64::from(counter[2]);
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
    }
    counter
}

/// Philox on 32 counters that differ in their first word only: `first .. first + 32`. The same bits as
/// [`philox4x32`], in a form that compilers turn into vector code.
#[inline(always)]
pub fn philox_lanes(first: u32, rest: [u32; 3], mut key: [u32; 2]) -> [[u32; 32]; 4] {
    let mut c: [[u32; 32]; 4] = [[0; 32], [rest[0]; 32], [rest[1]; 32], [rest[2]; 32]];
    for (lane, word) in c[0].iter_mut().enumerate() {
        *word = first.wrapping_add(lane as u32);
    }
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL0), key[1].wrapping_add(WEYL1)];
        }
        for lane in 0..32 {
            let p0 = u64::from(MUL0) * u64::from(c[0][lane]);
            let p1 = u64::from(MUL1) * u64::from(c[2][lane]);
            let (c1, c3) = (c[1][lane], c[3][lane]);
            c[0][lane] = (p1 >> 32) as u32 ^ c1 ^ key[0];
            c[1][lane] = p1 as u32;
            c[2][lane] = (p0 >> 32) as u32 ^ c3 ^ key[1];
            c[3][lane] = p0 as u32;
        }
    }
    c
}

/// Counter words 1..4 and key of a row at a step.
pub fn stream(seed: u64, step: u64, row: u32) -> ([u32; 3], [u32; 2]) {
    ([row, step as u32, (step >> 32) as u32], [seed as u32, (seed >> 32) as u32])
}

/// `U` on [0, 1) for one latent.
pub fn uniform(seed: u64, step: u64, row: u32, latent: u32) -> f32 {
    let (rest, key) = stream(seed, step, row);
    let counter = 32 * (latent / GROUP as u32) + latent % 32;
    let words = philox4x32([counter, rest[0], rest[1], rest[2]], key);
    unit(words[(latent as usize % GROUP) / 32])
}

/// The 24 high bits of a word as a float32 on [0, 1).
#[inline(always)]
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// `-ln(-ln(U + 1e-9) + 1e-9)` in float64.
pub fn gumbel_f64(uniform: f32) -> f64 {
    -(-(f64::from(uniform) + GUMBEL_EPS).ln() + GUMBEL_EPS).ln()
}

/// Where a step's noise comes from.
#[derive(Debug, Clone, Copy)]
pub enum Noise<'a> {
    /// Drawn from the counter.
    Philox {
        /// The run's seed.
        seed: u64,
    },
    /// Given uniform values (N, M), as in the golden files.
    Given(&'a [f32]),
}

impl Noise<'_> {
    /// `U` of one element.
    pub fn uniform(&self, step: u64, row: usize, latent: usize, n_latents: usize) -> f32 {
        match self {
            Self::Philox { seed } => uniform(*seed, step, row as u32, latent as u32),
            Self::Given(values) => values[row * n_latents + latent],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_known_answers() {
        // The Random123 distribution's known-answer vectors for philox4x32 with 10 rounds.
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn the_vector_form_draws_the_same_bits_as_the_scalar_form() {
        let (rest, key) = stream(0x1234_5678_9abc_def0, 77, 5);
        let lanes = philox_lanes(64, rest, key);
        for latent in 256..384 {
            let expected = uniform(0x1234_5678_9abc_def0, 77, 5, latent);
            let inside = latent as usize - 256;
            assert_eq!(unit(lanes[inside / 32][inside % 32]), expected);
        }
    }

    #[test]
    fn gumbel_noise_has_the_mean_and_variance_of_the_gumbel_distribution() {
        let n = 200_000;
        let draws: Vec<f64> = (0..n).map(|j| gumbel_f64(uniform(9, 3, 1, j))).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let var = draws.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!((mean - 0.577_216).abs() < 0.01, "{mean}");
        assert!((var - 1.644_934).abs() < 0.05, "{var}");
    }
}
