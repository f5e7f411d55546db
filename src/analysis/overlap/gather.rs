//! The codes of labelled ids: of each id the groups it is in, its rows, and its active latents.

use super::IdCounts;
use super::labels::Labels;
use super::log::{Entry, Log};
use crate::analysis::spill::Room;
use crate::error::Result;
use std::sync::atomic::AtomicBool;

/// Everything that is known of the ids.
#[derive(Debug)]
pub struct Gathered {
    /// The ids that are in a group, with their active latents.
    pub log: Log,
    /// Sums over the ids of each group, by its bit.
    pub totals: Vec<Totals>,
    /// What became of all ids.
    pub ids: IdCounts,
    /// Ids of the data with each label of the column.
    pub ids_of_label: Vec<u64>,
    /// The first id of the data.
    pub example_id: Option<String>,
    /// Latents of the model, M.
    pub n_latents: usize,
}

impl Gathered {
    /// Sums over the ids of the group with this bit, in the order of the data.
    ///
    /// # Panics
    /// If no group has it.
    pub fn totals(&self, bit: u64) -> &Totals {
        &self.totals[bit.trailing_zeros() as usize]
    }
}

/// Active latents of some ids in compressed form: id i owns the entries `starts[i] .. starts[i + 1]`.
#[derive(Debug, Default)]
pub struct Selected {
    /// Groups of each id, as bits; never none.
    pub masks: Vec<u64>,
    /// Rows of each id: 1, or the residues of a protein.
    pub rows: Vec<u32>,
    /// Where each id begins, and the number of entries at the end.
    pub starts: Vec<usize>,
    /// Latent of each entry.
    pub latents: Vec<u32>,
    /// How many rows of the id activate it.
    pub counts: Vec<u32>,
    /// Sum of its activations over the id's rows.
    pub sums: Vec<f32>,
    /// Latents, numbered from 0.
    pub n_latents: usize,
}

/// Sums over the ids of a group.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Ids.
    pub ids: u64,
    /// Their rows.
    pub rows: u64,
    /// Rows that activate each latent (M).
    pub counts: Vec<u32>,
    /// Sum of activations of each latent (M).
    pub sums: Vec<f64>,
}

impl Totals {
    /// Nothing, of `n_latents` latents.
    pub fn zero(n_latents: usize) -> Self {
        Self { ids: 0, rows: 0, counts: vec![0; n_latents], sums: vec![0.0; n_latents] }
    }

    /// Back to nothing, in the same memory.
    pub fn clear(&mut self) {
        (self.ids, self.rows) = (0, 0);
        self.counts.fill(0);
        self.sums.fill(0.0);
    }

    /// Adds an id of so many rows.
    fn add(&mut self, rows: u32, entries: &[Entry]) {
        self.ids += 1;
        self.rows += u64::from(rows);
        for [latent, count, sum] in entries {
            self.counts[*latent as usize] += count;
            self.sums[*latent as usize] += f64::from(f32::from_bits(*sum));
        }
    }

    /// Adds id `i`, without its sums of activations.
    pub fn add_counts(&mut self, data: &Selected, i: usize) {
        self.ids += 1;
        self.rows += u64::from(data.rows[i]);
        let entries = data.starts[i]..data.starts[i + 1];
        for (latent, count) in data.latents[entries.clone()].iter().zip(&data.counts[entries]) {
            self.counts[*latent as usize] += count;
        }
    }

    /// Takes away what `part` has.
    pub fn take_away(&mut self, part: &Self) {
        self.ids -= part.ids;
        self.rows -= part.rows;
        for j in 0..self.counts.len() {
            self.counts[j] -= part.counts[j];
            self.sums[j] -= part.sums[j];
        }
    }

    /// Adds the sums of activations of id `i`.
    pub fn add_sums(&mut self, data: &Selected, i: usize) {
        let entries = data.starts[i]..data.starts[i + 1];
        for (latent, sum) in data.latents[entries.clone()].iter().zip(&data.sums[entries]) {
            self.sums[*latent as usize] += f64::from(*sum);
        }
    }
}

impl Selected {
    /// The ids in one of the groups `mask`, with the latents that `number` (M) has a new number for, which have
    /// `n_entries` entries together. Counts of other ids are left out.
    ///
    /// # Errors
    /// As [`Log::each`].
    pub fn read(
        log: &Log,
        mask: u64,
        (number, n_entries): (&[Option<u32>], usize),
        stop: &AtomicBool,
    ) -> Result<Self> {
        let n_latents = number.iter().flatten().count();
        let mut part = Self { starts: vec![0], n_latents, ..Self::default() };
        part.latents.reserve_exact(n_entries);
        part.counts.reserve_exact(n_entries);
        part.sums.reserve_exact(n_entries);
        log.each(stop, |id| {
            if id.mask & mask == 0 {
                return Ok(());
            }
            for [latent, count, sum] in id.entries {
                if let Some(latent) = number[*latent as usize] {
                    part.latents.push(latent);
                    part.counts.push(*count);
                    part.sums.push(f32::from_bits(*sum));
                }
            }
            part.masks.push(id.mask);
            part.rows.push(id.rows);
            part.starts.push(part.latents.len());
            Ok(())
        })?;
        Ok(part)
    }

    /// Sums over the ids whose groups `wanted` accepts, in the order of the data.
    pub fn totals(&self, wanted: impl Fn(u64) -> bool) -> Totals {
        let mut totals = Totals::zero(self.n_latents);
        for i in (0..self.masks.len()).filter(|i| wanted(self.masks[*i])) {
            totals.add_counts(self, i);
            totals.add_sums(self, i);
        }
        totals
    }
}

/// Takes rows as they come; those of an id follow one another.
#[derive(Debug)]
pub struct Gather<'a> {
    labels: &'a Labels,
    /// Group of each label of the column, as a bit; 0 for labels that are not compared.
    bits: Vec<u64>,
    exclusive: bool,
    /// The id whose rows are coming, and its groups: 0 if it is left out.
    current: Option<(String, u64)>,
    n_rows: u32,
    /// Of the current id (M each), and the latents that are not 0.
    counts: Vec<u32>,
    sums: Vec<f64>,
    touched: Vec<u32>,
    entries: Vec<Entry>,
    done: Gathered,
}

impl<'a> Gather<'a> {
    /// Ids with the labels `groups` (places in `labels.names`) are kept; group i is bit i.
    pub fn new(labels: &'a Labels, groups: &[usize], exclusive: bool, n_latents: usize, room: Room) -> Self {
        let mut bits = vec![0; labels.names.len()];
        for (i, label) in groups.iter().enumerate() {
            bits[*label] = 1 << i;
        }
        let done = Gathered {
            log: Log::new(room),
            totals: vec![Totals::zero(n_latents); groups.len()],
            ids: IdCounts::default(),
            ids_of_label: vec![0; labels.names.len()],
            example_id: None,
            n_latents,
        };
        Self {
            labels,
            bits,
            exclusive,
            current: None,
            n_rows: 0,
            counts: vec![0; n_latents],
            sums: vec![0.0; n_latents],
            touched: vec![],
            entries: vec![],
            done,
        }
    }

    /// Adds a row of the id `entry`: its active latents and their values.
    ///
    /// # Errors
    /// What the disk refuses where codes do not fit in memory.
    pub fn add(&mut self, entry: &str, latents: &[u32], values: &[f32]) -> Result<()> {
        let mask = match &self.current {
            Some((name, mask)) if name == entry => *mask,
            _ => self.begin(entry)?,
        };
        if mask == 0 {
            return Ok(());
        }
        self.n_rows += 1;
        for (latent, value) in latents.iter().zip(values) {
            let j = *latent as usize;
            if self.counts[j] == 0 {
                self.touched.push(*latent);
            }
            self.counts[j] += 1;
            // Of signed codes the magnitude.
            self.sums[j] += f64::from(value.abs());
        }
        Ok(())
    }

    fn begin(&mut self, entry: &str) -> Result<u64> {
        self.end()?;
        let ids = &mut self.done.ids;
        let mut mask = 0;
        match self.labels.of(entry) {
            None => ids.not_in_table += 1,
            Some([]) => ids.unlabelled += 1,
            Some(own) => {
                for label in own {
                    mask |= self.bits[*label as usize];
                    self.done.ids_of_label[*label as usize] += 1;
                }
                match mask.count_ones() {
                    0 => ids.other_labels += 1,
                    n => {
                        ids.in_groups += 1;
                        ids.in_several += u64::from(n > 1);
                    }
                }
            }
        }
        if self.exclusive && mask.count_ones() > 1 {
            mask = 0;
        }
        if self.done.example_id.is_none() {
            self.done.example_id = Some(entry.to_owned());
        }
        self.current = Some((entry.to_owned(), mask));
        Ok(mask)
    }

    fn end(&mut self) -> Result<()> {
        let Some((_, mask)) = self.current.take() else { return Ok(()) };
        if mask == 0 {
            return Ok(());
        }
        self.touched.sort_unstable();
        self.entries.clear();
        for latent in self.touched.drain(..) {
            let j = latent as usize;
            let (count, sum) = (std::mem::take(&mut self.counts[j]), std::mem::take(&mut self.sums[j]));
            self.entries.push([latent, count, (sum as f32).to_bits()]);
        }
        let rows = std::mem::take(&mut self.n_rows);
        for (bit, totals) in self.done.totals.iter_mut().enumerate() {
            if mask >> bit & 1 == 1 {
                totals.add(rows, &self.entries);
            }
        }
        self.done.log.push(mask, rows, &self.entries)
    }

    /// All ids.
    ///
    /// # Errors
    /// As [`Gather::add`].
    pub fn finish(mut self) -> Result<Gathered> {
        self.end()?;
        Ok(self.done)
    }
}
