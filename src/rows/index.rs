//! Which rows there are: their ids, what the split keeps together, and the file each lies in.

use std::path::{Path, PathBuf};

/// One file that rows were read from.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceFile {
    /// The file.
    pub path: PathBuf,
    /// What its rows are: `one vector per id`, `residues per id` or `matrix`.
    pub layout: &'static str,
    /// The dataset, or how many there are, in words.
    pub datasets: String,
    /// Rows taken from it.
    pub n_rows: usize,
}

/// Ids and groups of rows, in the order of the rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowIndex {
    /// Ids of the groups.
    pub(crate) ids: Vec<String>,
    /// Group and residue (from 1; 0 for a row that is no residue) of each row; empty if every row is a group of its own.
    pub(crate) of_row: Vec<(u32, u32)>,
    /// What each id belongs to, where ids are kept together in a split; `None` where each stands alone.
    pub(crate) clusters: Option<Vec<String>>,
    /// The files, in the order given.
    pub(crate) pieces: Vec<SourceFile>,
}

impl RowIndex {
    /// Rows that are groups of their own, with these ids.
    pub fn of_ids(ids: Vec<String>) -> Self {
        Self { ids, ..Self::default() }
    }

    /// Number of rows, N.
    pub fn n_rows(&self) -> usize {
        if self.of_row.is_empty() { self.ids.len() } else { self.of_row.len() }
    }

    /// Number of groups: what the split keeps together.
    pub fn n_groups(&self) -> usize {
        self.ids.len()
    }

    /// The group of a row: its protein in per-residue files, else the row itself.
    pub fn group_of(&self, row: usize) -> usize {
        match self.of_row.get(row) {
            Some((group, _)) => *group as usize,
            None => row,
        }
    }

    /// The id of a group.
    pub fn group_id(&self, group: usize) -> &str {
        &self.ids[group]
    }

    /// Whether ids belong to groups that a split keeps together.
    pub fn has_clusters(&self) -> bool {
        self.clusters.is_some()
    }

    /// What an id's split is decided by: its group where there are groups, else itself.
    pub fn cluster_of(&self, group: usize) -> &str {
        self.clusters.as_ref().map_or(&self.ids[group], |clusters| &clusters[group])
    }

    /// The id of a row; `id:residue`, residues from 1, in per-residue files.
    pub fn row_id(&self, row: usize) -> String {
        let id = self.group_id(self.group_of(row));
        match self.of_row.get(row) {
            Some((_, residue)) if *residue > 0 => format!("{id}:{residue}"),
            _ => id.to_owned(),
        }
    }

    /// The file of a row, where it was read from one.
    pub fn file_of(&self, row: usize) -> Option<&Path> {
        let mut end = 0;
        let piece = self.pieces.iter().find(|piece| {
            end += piece.n_rows;
            row < end
        });
        piece.map(|piece| piece.path.as_path())
    }

    /// The files, in the order given.
    pub fn pieces(&self) -> &[SourceFile] {
        &self.pieces
    }

    /// Drops the rows that `keep` does not mark, and ids of which none is left; `pieces` are the files then.
    pub(crate) fn retain(&mut self, keep: &[bool], pieces: Vec<SourceFile>) {
        let mut ids = vec![false; self.ids.len()];
        for row in (0..self.n_rows()).filter(|&row| keep[row]) {
            ids[self.group_of(row)] = true;
        }
        let mut rows = keep.iter();
        self.of_row.retain(|_| rows.next() == Some(&true));
        let numbers: Vec<u32> =
            ids.iter().scan(0, |n, &stays| Some(std::mem::replace(n, *n + u32::from(stays)))).collect();
        self.of_row.iter_mut().for_each(|(group, _)| *group = numbers[*group as usize]);
        for texts in [Some(&mut self.ids), self.clusters.as_mut()].into_iter().flatten() {
            let mut stays = ids.iter();
            texts.retain(|_| stays.next() == Some(&true));
        }
        self.pieces = pieces;
    }

    /// Bytes that the ids take in memory.
    pub fn memory(&self) -> usize {
        // The allocator adds a word to each text, and gives no less than four words.
        let text = |id: &String| size_of::<String>() + (id.capacity() + 8).next_multiple_of(16).max(32);
        let text: usize = self.ids.iter().map(text).sum();
        text + size_of_val(self.of_row.as_slice())
    }

    /// Feeds ids and groups to a hash.
    pub(crate) fn hash(&self, hash: &mut xxhash_rust::xxh3::Xxh3) {
        for id in &self.ids {
            hash.update(&(id.len() as u64).to_le_bytes());
            hash.update(id.as_bytes());
        }
        for (group, residue) in &self.of_row {
            hash.update(&group.to_le_bytes());
            hash.update(&residue.to_le_bytes());
        }
    }
}
