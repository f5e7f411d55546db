//! The codes of labelled ids, in memory: of each id the groups it is in, its rows, and its active latents.

use super::IdCounts;
use super::labels::Labels;

/// Active latents of ids in compressed form: id i owns the entries `starts[i] .. starts[i + 1]`.
#[derive(Debug, Default)]
pub struct Gathered {
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
    /// What became of all ids.
    pub ids: IdCounts,
    /// Ids of the data with each label of the column.
    pub ids_of_label: Vec<u64>,
    /// The first id of the data.
    pub example_id: Option<String>,
    /// Latents of the model, M.
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

    /// Adds id `i`, without its sums of activations.
    pub fn add_counts(&mut self, data: &Gathered, i: usize) {
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
    pub fn add_sums(&mut self, data: &Gathered, i: usize) {
        let entries = data.starts[i]..data.starts[i + 1];
        for (latent, sum) in data.latents[entries.clone()].iter().zip(&data.sums[entries]) {
            self.sums[*latent as usize] += f64::from(*sum);
        }
    }
}

impl Gathered {
    /// Sums over the ids whose groups `wanted` accepts, in the order of the data.
    pub fn totals(&self, wanted: impl Fn(u64) -> bool) -> Totals {
        let mut totals = Totals::zero(self.n_latents);
        for i in (0..self.masks.len()).filter(|i| wanted(self.masks[*i])) {
            totals.add_counts(self, i);
            totals.add_sums(self, i);
        }
        totals
    }

    /// The ids whose groups `wanted` accepts, with the latents that `keep` (M) has, numbered anew. Counts of other ids
    /// are left out.
    pub fn part(&self, wanted: impl Fn(u64) -> bool, keep: &[bool]) -> Self {
        let mut number = vec![0; keep.len()];
        let mut n_latents = 0;
        for j in (0..keep.len()).filter(|j| keep[*j]) {
            number[j] = n_latents as u32;
            n_latents += 1;
        }
        let mut part = Self { starts: vec![0], n_latents, ..Self::default() };
        for i in (0..self.masks.len()).filter(|i| wanted(self.masks[*i])) {
            for e in self.starts[i]..self.starts[i + 1] {
                let j = self.latents[e] as usize;
                if keep[j] {
                    part.latents.push(number[j]);
                    part.counts.push(self.counts[e]);
                    part.sums.push(self.sums[e]);
                }
            }
            part.masks.push(self.masks[i]);
            part.rows.push(self.rows[i]);
            part.starts.push(part.latents.len());
        }
        part
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
    done: Gathered,
}

impl<'a> Gather<'a> {
    /// Ids with the labels `groups` (places in `labels.names`) are kept; group i is bit i.
    pub fn new(labels: &'a Labels, groups: &[usize], exclusive: bool, n_latents: usize) -> Self {
        let mut bits = vec![0; labels.names.len()];
        for (i, label) in groups.iter().enumerate() {
            bits[*label] = 1 << i;
        }
        let done = Gathered {
            starts: vec![0],
            ids_of_label: vec![0; labels.names.len()],
            n_latents,
            ..Gathered::default()
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
            done,
        }
    }

    /// Adds a row of the id `entry`: its active latents and their values.
    pub fn add(&mut self, entry: &str, latents: &[u32], values: &[f32]) {
        let mask = match &self.current {
            Some((name, mask)) if name == entry => *mask,
            _ => self.begin(entry),
        };
        if mask == 0 {
            return;
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
    }

    fn begin(&mut self, entry: &str) -> u64 {
        self.end();
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
        mask
    }

    fn end(&mut self) {
        let Some((_, mask)) = self.current.take() else { return };
        if mask == 0 {
            return;
        }
        self.touched.sort_unstable();
        for latent in self.touched.drain(..) {
            let j = latent as usize;
            self.done.latents.push(latent);
            self.done.counts.push(std::mem::take(&mut self.counts[j]));
            self.done.sums.push(std::mem::take(&mut self.sums[j]) as f32);
        }
        self.done.masks.push(mask);
        self.done.rows.push(std::mem::take(&mut self.n_rows));
        self.done.starts.push(self.done.latents.len());
    }

    /// All ids.
    pub fn finish(mut self) -> Gathered {
        self.end();
        self.done
    }
}
