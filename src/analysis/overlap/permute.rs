//! The overlap of two groups, and what it would be if the labels said nothing about the latents.
//!
//! A shuffle deals the labels of the two groups' ids out again at random among the same ids, so the null hypothesis is
//! that these ids are exchangeable. It keeps the number of ids in each group and in both: the groups of a shuffle are as
//! unequal as the real ones, and a latent near the threshold is as uncertain in the smaller. Ids are shuffled, not rows:
//! residues of one protein are no independent observations. (The numbers of rows then differ a little between shuffles
//! of a per-residue file.) Ids of other groups take no part, so a figure does not depend on what else is compared.
//!
//! p is two-sided: twice the smaller of the shares of shuffles at most and at least as large as what was observed, the
//! observation itself counted among them (Phipson and Smyth, *Permutation p-values should never be zero*, 2010), so
//! P shuffles give at least 2 / (P + 1). It is of one pair: over many pairs some are small by chance.

use super::gather::{Gathered, Selected, Totals};
use crate::analysis::spill::ranges;
use crate::error::Result;
use crate::interrupt::check_flag;
use crate::noise::philox4x32;
use rayon::prelude::*;
use serde::Serialize;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// When a latent counts as active in a group: both must hold.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Active {
    /// The share of the group's rows that activate it is above this.
    pub threshold: f64,
    /// Its mean activation over all rows of the group is above this, in the model's own units.
    pub min_activation: f64,
}

impl Active {
    /// For a latent that `count` of `rows` rows activate, with the sum `sum`.
    pub fn holds(&self, count: u32, sum: f64, rows: u64) -> bool {
        // With no least activation the count alone decides: a sum that is a difference may be off by its last bits.
        f64::from(count) / rows as f64 > self.threshold
            && (self.min_activation == 0.0 || sum / rows as f64 > self.min_activation)
    }
}

/// A figure beside the same figure of shuffled labels. What is not defined (a share of no latents) is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measure {
    /// Of the groups as they are.
    pub observed: Option<f64>,
    /// Mean over shuffles.
    pub shuffled_mean: Option<f64>,
    /// 2.5th percentile of the shuffles.
    pub shuffled_low: Option<f64>,
    /// 97.5th percentile.
    pub shuffled_high: Option<f64>,
    /// Two-sided p-value.
    pub p: Option<f64>,
}

/// Two groups.
#[derive(Debug, Clone, Serialize)]
pub struct Pair {
    /// The first group.
    pub a: String,
    /// The second.
    pub b: String,
    /// Ids in both.
    pub ids_in_both: u64,
    /// Latents active in A.
    pub active_a: Measure,
    /// Latents active in B.
    pub active_b: Measure,
    /// Latents active in both.
    pub shared: Measure,
    /// |A n B| / |A u B|.
    pub jaccard: Measure,
    /// |A n B| / |A|.
    pub share_of_a: Measure,
    /// |A n B| / |B|.
    pub share_of_b: Measure,
}

/// How labels are shuffled.
#[derive(Debug, Clone, Copy)]
pub struct Shuffles {
    /// What counts as active.
    pub active: Active,
    /// How many.
    pub permutations: usize,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Sizes of the sets A, B and A n B.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sizes {
    pub a: usize,
    pub b: usize,
    pub both: usize,
}

impl Sizes {
    /// Adds the sizes of these sets among other latents.
    fn add(&mut self, other: Self) {
        self.a += other.a;
        self.b += other.b;
        self.both += other.both;
    }
}

/// Bytes of an entry of [`Selected`].
const ENTRY_BYTES: u64 = 12;

/// Ids are in A alone, in B alone, or in both.
const KINDS: usize = 3;

/// Memory of one thread.
struct Scratch {
    order: Vec<u32>,
    /// Kind of each id.
    kind: Vec<u8>,
    totals: [Totals; KINDS],
}

/// Latents that can be active in one of two groups, however the labels are dealt.
struct Relevant {
    /// Entries of each latent (M); 0 for those that cannot.
    entries: Vec<u64>,
    /// All latents, in ranges whose entries fit in memory together.
    parts: Vec<Range<usize>>,
    /// Ids in both groups.
    ids_in_both: u64,
}

impl Relevant {
    /// The new number of each latent (M) that is in a part, and the entries of these.
    fn numbered(&self, part: &Range<usize>) -> (Vec<Option<u32>>, usize) {
        let mut number = vec![None; self.entries.len()];
        let kept = part.clone().filter(|j| self.entries[*j] > 0);
        (0u32..).zip(kept).for_each(|(new, j)| number[j] = Some(new));
        (number, self.entries[part.clone()].iter().sum::<u64>() as usize)
    }
}

impl Shuffles {
    /// Compares two groups, each a name and its bit. What shuffles give is counted latent by latent, so that as many
    /// latents are looked at together as fit in memory.
    ///
    /// # Errors
    /// [`crate::error::Error::Interrupted`] once `stop` is set; what the disk refuses.
    pub fn pair(&self, data: &Gathered, a: (&str, u64), b: (&str, u64), stop: &AtomicBool) -> Result<Pair> {
        let relevant = self.relevant(data, (a.1, b.1), stop)?;
        let mut observed = Sizes::default();
        let mut shuffled = vec![Sizes::default(); self.permutations];
        for part in &relevant.parts {
            let (number, n_entries) = relevant.numbered(part);
            let part = Selected::read(&data.log, a.1 | b.1, (&number, n_entries), stop)?;
            self.add_part(&part, (a.1, b.1), (&mut observed, &mut shuffled), stop)?;
        }
        let of = |figure: fn(Sizes) -> Option<f64>| {
            measure(figure(observed), shuffled.iter().filter_map(|s| figure(*s)).collect())
        };
        Ok(Pair {
            a: a.0.to_owned(),
            b: b.0.to_owned(),
            ids_in_both: relevant.ids_in_both,
            active_a: of(|s| Some(s.a as f64)),
            active_b: of(|s| Some(s.b as f64)),
            shared: of(|s| Some(s.both as f64)),
            jaccard: of(|s| share(s.both, s.a + s.b - s.both)),
            share_of_a: of(|s| share(s.both, s.a)),
            share_of_b: of(|s| share(s.both, s.b)),
        })
    }

    /// Adds what the latents of a part give, as the labels are and in every shuffle.
    fn add_part(
        &self,
        data: &Selected,
        (a, b): (u64, u64),
        (observed, shuffled): (&mut Sizes, &mut [Sizes]),
        stop: &AtomicBool,
    ) -> Result<()> {
        let kind = |mask: u64| match (mask & a != 0, mask & b != 0) {
            (true, false) => Some(0),
            (false, true) => Some(1),
            (true, true) => Some(2),
            (false, false) => None,
        };
        let kinds = std::array::from_fn(|k| data.totals(|mask| kind(mask) == Some(k)));
        observed.add(self.sizes(&kinds));
        let together = data.totals(|_| true);
        let sizes: [usize; KINDS] = std::array::from_fn(|k| kinds[k].ids as usize);
        let members: Vec<u32> = (0..data.masks.len() as u32).collect();
        let start =
            || Scratch { order: members.clone(), kind: vec![0; members.len()], totals: kinds.clone() };
        shuffled
            .par_iter_mut()
            .enumerate()
            .map_init(start, |scratch, (number, sum)| {
                check_flag(stop)?;
                scratch.order.copy_from_slice(&members);
                let word = |i| philox4x32([i, number as u32, 0, 0], self.key())[0];
                deal(data, scratch, &sizes, &together, self.active.min_activation > 0.0, word);
                sum.add(self.sizes(&scratch.totals));
                Ok(())
            })
            .collect::<Result<()>>()
    }

    /// The latents of two groups' ids that can be active in one of them, however the labels are dealt: those of more rows
    /// in all than the threshold asks of the smaller group. The others, most in a large model, would only be counted to be
    /// found inactive.
    fn relevant(&self, data: &Gathered, (a, b): (u64, u64), stop: &AtomicBool) -> Result<Relevant> {
        let mut counts = vec![0u32; data.n_latents];
        let mut entries = vec![0u64; data.n_latents];
        let (mut rows, mut ids_in_both) = (vec![], 0);
        data.log.each(stop, |id| {
            if id.mask & (a | b) == 0 {
                return Ok(());
            }
            ids_in_both += u64::from(id.mask & a != 0 && id.mask & b != 0);
            rows.push(id.rows);
            for [latent, count, _] in id.entries {
                counts[*latent as usize] += count;
                entries[*latent as usize] += 1;
            }
            Ok(())
        })?;
        rows.sort_unstable();
        // The fewest rows that the smaller group can have.
        let smaller = data.totals(a).ids.min(data.totals(b).ids) as usize;
        let fewest: u64 = rows.iter().take(smaller).map(|n| u64::from(*n)).sum();
        let possible = |j: usize| f64::from(counts[j]) / fewest as f64 > self.active.threshold;
        for j in (0..data.n_latents).filter(|j| !possible(*j)) {
            entries[j] = 0;
        }
        let parts = ranges(&entries, data.log.memory_left() / ENTRY_BYTES);
        Ok(Relevant { entries, parts, ids_in_both })
    }

    fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    /// The sets of active latents of two groups: A is the first kind and the last, B the second and the last.
    fn sizes(&self, kinds: &[Totals; KINDS]) -> Sizes {
        let [a, b, both] = kinds;
        let (rows_a, rows_b) = (a.rows + both.rows, b.rows + both.rows);
        let mut sizes = Sizes { a: 0, b: 0, both: 0 };
        for j in 0..both.counts.len() {
            let in_a = self.active.holds(a.counts[j] + both.counts[j], a.sums[j] + both.sums[j], rows_a);
            let in_b = self.active.holds(b.counts[j] + both.counts[j], b.sums[j] + both.sums[j], rows_b);
            sizes.a += usize::from(in_a);
            sizes.b += usize::from(in_b);
            sizes.both += usize::from(in_a && in_b);
        }
        sizes
    }
}

/// Deals the ids in `scratch.order` out into kinds of the given sizes by the random `word(i)`, and adds each kind up;
/// activations only `with_sums`, for they seldom decide. The largest kind is what remains of the sum of all: only the
/// others are added, in the order in which they lie in memory. Without sums those of the totals mean nothing.
fn deal(
    data: &Selected,
    scratch: &mut Scratch,
    sizes: &[usize; KINDS],
    together: &Totals,
    with_sums: bool,
    word: impl Fn(u32) -> u32,
) {
    let Scratch { order, kind, totals } = scratch;
    let largest = (0..KINDS).max_by_key(|k| sizes[*k]).unwrap_or(0);
    kind.fill(largest as u8);
    let mut at = 0;
    for k in (0..KINDS).filter(|k| *k != largest) {
        totals[k].clear();
        for _ in 0..sizes[k] {
            // Fisher and Yates. The product's high word is below the number left; its bias is below 2^-32 times that.
            let left = (order.len() - at) as u64;
            let step = (u64::from(word(at as u32)) * left) >> 32;
            order.swap(at, at + step as usize);
            kind[order[at] as usize] = k as u8;
            at += 1;
        }
    }
    for i in (0..kind.len()).filter(|i| usize::from(kind[*i]) != largest) {
        let total = &mut totals[usize::from(kind[i])];
        total.add_counts(data, i);
        if with_sums {
            total.add_sums(data, i);
        }
    }
    let mut rest = std::mem::take(&mut totals[largest]);
    (rest.ids, rest.rows) = (together.ids, together.rows);
    rest.counts.copy_from_slice(&together.counts);
    rest.sums.copy_from_slice(&together.sums);
    for k in (0..KINDS).filter(|k| *k != largest) {
        rest.take_away(&totals[k]);
    }
    totals[largest] = rest;
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// A figure beside those of shuffles.
pub(super) fn measure(observed: Option<f64>, mut shuffled: Vec<f64>) -> Measure {
    let n = shuffled.len();
    let mean = (n > 0).then(|| shuffled.iter().sum::<f64>() / n as f64);
    shuffled.sort_by(f64::total_cmp);
    // Between neighbours in proportion, as most programs do.
    let percentile = |q: f64| {
        let at = q * n.checked_sub(1)? as f64;
        let (low, high) = (shuffled[at.floor() as usize], shuffled[at.ceil() as usize]);
        Some(low + (high - low) * at.fract())
    };
    let p = observed.filter(|_| n > 0).map(|value| {
        let low = shuffled.iter().filter(|v| **v <= value).count();
        let high = shuffled.iter().filter(|v| **v >= value).count();
        (2.0 * (1 + low.min(high)) as f64 / (n + 1) as f64).min(1.0)
    });
    Measure {
        observed,
        shuffled_mean: mean,
        shuffled_low: percentile(0.025),
        shuffled_high: percentile(0.975),
        p,
    }
}
