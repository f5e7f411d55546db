//! Structures of proteins as PDB or mmCIF files, copied with B-factors that show a figure per residue; all else in the
//! file stays as it is, byte for byte.
//!
//! `pdb` and `cif` find atoms and their B-factors in the text; here atoms become residues, and rows are matched with them.

mod cif;
mod pdb;

use crate::error::{Error, Result};
use crate::spec::choices;
use crate::text::thousands;
use flate2::read::MultiGzDecoder;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Chains that an error lists, at most.
const LISTED: usize = 12;

choices! {
    /// How residues of a structure are matched with the rows of a sequence.
    pub enum Matching {
        /// The first residue of the chain is the first row, and so on; there must be as many
        Order = "order",
        /// The residue numbered 1 is the first row; residues may be missing
        Number = "number",
    }
}

/// The format of a structure's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// PDB: records of fixed columns.
    Pdb,
    /// mmCIF: a loop of `_atom_site`.
    Cif,
}

impl Format {
    /// Its name, and the extension of its files.
    pub fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Pdb => ("PDB", "pdb"),
            Self::Cif => ("mmCIF", "cif"),
        }
    }
}

/// An atom as a file has it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Record {
    /// The bytes of its B-factor.
    b_factor: Range<usize>,
    /// Blanks that are written before a new one, where the line ends too early.
    blanks: usize,
    chain: String,
    /// Number and insertion code, as the file has them.
    residue: String,
    /// The number.
    number: Option<i64>,
    /// Whether there is an insertion code.
    inserted: bool,
    /// Not of a standard residue: a ligand, water, or a modified residue.
    hetero: bool,
    /// An alpha carbon.
    alpha: bool,
    /// Not part of a chain's polymer, if it is `hetero`.
    apart: bool,
}

/// A residue of a chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Residue {
    /// Its number in the file; `None` where it has an insertion code too, or what stands there is no number.
    pub number: Option<i64>,
}

/// The residues of a chain, in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// Its name; in PDB files it may be blank.
    pub name: String,
    /// Its residues: modified ones are among them, ligands and water are not.
    pub residues: Vec<Residue>,
}

/// A structure in memory.
#[derive(Debug, Clone)]
pub struct Structure {
    path: PathBuf,
    text: Vec<u8>,
    format: Format,
    atoms: Vec<Record>,
    /// Chain and residue of each atom; `None` for those that belong to no residue.
    places: Vec<Option<(usize, usize)>>,
    chains: Vec<Chain>,
}

/// Which rows the residues of a structure show.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Placed {
    /// Names of the chains.
    pub chains: Vec<String>,
    /// Residues with a row.
    pub residues: usize,
    /// Residues of these chains without one.
    pub without_row: usize,
    /// Other chains that have as many residues.
    pub alike: Vec<String>,
    /// Row (from 0) of each residue, by place of the chain.
    #[serde(skip)]
    rows: HashMap<usize, Vec<Option<usize>>>,
}

impl Structure {
    /// Reads a PDB or mmCIF file, which gzip may have compressed.
    ///
    /// # Errors
    /// A file that cannot be read, is neither, is damaged, or holds no residues.
    pub fn read(path: &Path) -> Result<Self> {
        let mut text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        if text.starts_with(&[0x1f, 0x8b]) {
            let mut plain = vec![];
            let unpacked = MultiGzDecoder::new(text.as_slice()).read_to_end(&mut plain);
            unpacked
                .map_err(|e| Error::data(path, "", format!("gzip cannot unpack it ({e}); fetch it again")))?;
            text = plain;
        }
        Self::parse(path, text)
    }

    fn parse(path: &Path, text: Vec<u8>) -> Result<Self> {
        let wrong = |what: &str| Error::data(path, "", what);
        if text.contains(&0) {
            return Err(wrong(
                "is neither PDB nor mmCIF, which are text; fetch the structure in one of these formats",
            ));
        }
        let (format, atoms) = match cif::is_cif(&text) {
            true => (Format::Cif, cif::atoms(&text)),
            false => (Format::Pdb, pdb::atoms(&text)),
        };
        let atoms = atoms.map_err(|(at, what)| {
            let line = 1 + text[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count();
            Error::data(path, format!("line {}", thousands(line as u64)), what)
        })?;
        if atoms.is_empty() {
            return Err(wrong(
                "holds no atoms as PDB (lines ATOM) or mmCIF (a loop of _atom_site) has them; give a file of one of these formats",
            ));
        }
        let (places, chains) = residues(&atoms);
        if chains.is_empty() {
            return Err(wrong(
                "holds ligands or water alone, and no chain of residues; give the structure of the protein",
            ));
        }
        Ok(Self { path: path.to_owned(), text, format, atoms, places, chains })
    }

    /// Its format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its chains, in the order of the file.
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// Matches the `n_rows` rows of `id` with the residues of `chains`; where none is named, with those of the first chain
    /// that has as many, or, by number, of the only one.
    ///
    /// # Errors
    /// A chain that is not there; by order, a chain with another number of residues than there are rows; by number,
    /// several chains and none named, or none of the numbers among the rows'.
    pub fn place(
        &self,
        (id, n_rows): (&str, usize),
        chains: &[String],
        matching: Matching,
    ) -> Result<Placed> {
        let wrong = |what: String| Error::data(&self.path, "", what);
        let mut wanted = vec![];
        for name in chains {
            let found = self.chains.iter().position(|chain| chain.name == *name).ok_or_else(|| {
                wrong(format!(
                    "has no chain \"{name}\"; its chains: {}; name one with --chain",
                    self.listed()
                ))
            })?;
            if !wanted.contains(&found) {
                wanted.push(found);
            }
        }
        let fits = |chain: &usize| self.chains[*chain].residues.len() == n_rows;
        let all: Vec<usize> = (0..self.chains.len()).collect();
        match matching {
            Matching::Order => {
                if wanted.is_empty() {
                    wanted.extend(all.iter().copied().find(fits));
                }
                let misfit = wanted.iter().find(|chain| !fits(chain));
                if wanted.is_empty() || misfit.is_some() {
                    return Err(wrong(self.misfit((id, n_rows), misfit.copied())));
                }
            }
            Matching::Number if wanted.is_empty() => match all[..] {
                [only] => wanted.push(only),
                _ => {
                    return Err(wrong(format!(
                        "has several chains: {}; name those of {id} with --chain",
                        self.listed()
                    )));
                }
            },
            Matching::Number => {}
        }
        let row = |(at, residue): (usize, &Residue)| match matching {
            Matching::Order => Some(at),
            Matching::Number => {
                let number = usize::try_from(residue.number?).ok()?;
                (1..=n_rows).contains(&number).then(|| number - 1)
            }
        };
        let rows: HashMap<usize, Vec<Option<usize>>> = wanted
            .iter()
            .map(|&chain| (chain, self.chains[chain].residues.iter().enumerate().map(row).collect()))
            .collect();
        let total: usize = rows.values().map(Vec::len).sum();
        let residues = rows.values().flatten().flatten().count();
        if residues == 0 {
            return Err(wrong(format!(
                "no residue has a number from 1 to {n_rows}, the rows of {id}; number them as in the sequence, or leave --match out"
            )));
        }
        let name = |chain: &usize| self.chains[*chain].name.clone();
        let alike = all.iter().filter(|chain| fits(chain) && !wanted.contains(chain)).map(name).collect();
        Ok(Placed {
            chains: wanted.iter().map(name).collect(),
            residues,
            without_row: total - residues,
            alike,
            rows,
        })
    }

    /// Why the residues of a chain, or of any, are not the rows.
    fn misfit(&self, (id, n_rows): (&str, usize), chain: Option<usize>) -> String {
        let n = |chain: usize| self.chains[chain].residues.len();
        let mut what = match chain {
            Some(chain) => format!(
                "its chain {} has {} residues, and {id} has {n_rows} rows",
                chain_label(&self.chains[chain].name),
                n(chain)
            ),
            None => format!(
                "no chain has {n_rows} residues, one for each row of {id}; its chains: {}",
                self.listed()
            ),
        };
        let fewer = (0..self.chains.len()).map(n).filter(|&n| n < n_rows).max();
        match chain.map(n).or(fewer).and_then(|n| n_rows.checked_sub(n)) {
            Some(2) => what += "; if the first and the last row are tokens, add --tokens 1,1",
            Some(1) => what += "; if the last row is a token, add --tokens 0,1 (--tokens 1,0 for the first)",
            _ => {}
        }
        what += "; if the structure lacks residues or has more, and numbers them as the sequence does, add --match number";
        what
    }

    /// The chains with their lengths, in words.
    fn listed(&self) -> String {
        let one = |chain: &Chain| format!("{} ({} residues)", chain_label(&chain.name), chain.residues.len());
        let mut text = self.chains.iter().take(LISTED).map(one).collect::<Vec<_>>().join(", ");
        if self.chains.len() > LISTED {
            text += &format!(" and {} more", self.chains.len() - LISTED);
        }
        text
    }

    /// Refuses a copy, named by `flag`, whose extension says that it is something else than this file.
    ///
    /// # Errors
    /// [`Error::Usage`] with the extension to give it.
    pub fn check_copy(&self, flag: &str, path: &Path) -> Result<()> {
        let (format, extension) = self.format.name();
        let others: &[&str] = match self.format {
            Format::Pdb => &["cif", "mmcif", "bcif", "gz"],
            Format::Cif => &["pdb", "ent", "bcif", "gz"],
        };
        let named = path.extension().map(|named| named.to_string_lossy().to_ascii_lowercase());
        match named.filter(|named| others.contains(&named.as_str())) {
            Some(named) => Err(Error::Usage(format!(
                "{flag} {}: the copy is plain {format}, as the structure is, and no .{named}; name it .{extension}",
                path.display()
            ))),
            None => Ok(()),
        }
    }

    /// The file with new B-factors: of each residue that `placed` has a row for, that row's value in `values` (0 to 100,
    /// or -100 to 100); 0 for all other atoms.
    pub fn with_b_factors(&self, placed: &Placed, values: &[f64]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.text.len() + self.atoms.len());
        let mut done = 0;
        for (atom, place) in self.atoms.iter().zip(&self.places) {
            let row = place.and_then(|(chain, residue)| *placed.rows.get(&chain)?.get(residue)?);
            let value = row.and_then(|row| values.get(row)).copied().unwrap_or(0.0);
            out.extend_from_slice(&self.text[done..atom.b_factor.start]);
            out.extend(std::iter::repeat_n(b' ', atom.blanks));
            let field = match self.format {
                Format::Pdb => format!("{:>6}", six_columns(value)),
                // Columns stay aligned where the new text is no longer.
                Format::Cif => format!("{:<1$}", six_columns(value), atom.b_factor.len()),
            };
            out.extend_from_slice(field.as_bytes());
            done = atom.b_factor.end;
        }
        out.extend_from_slice(&self.text[done..]);
        out
    }
}

/// A chain's name as a person can see it.
pub fn chain_label(name: &str) -> &str {
    if name.trim().is_empty() { "\" \"" } else { name }
}

/// A value from -100 to 100 with two digits behind the point, or as many as fit six columns.
fn six_columns(value: f64) -> String {
    // No -0.00.
    let value = if value.abs() < 0.005 { 0.0 } else { value };
    let text = format!("{value:.2}");
    if text.len() <= 6 { text } else { format!("{value:.1}") }
}

/// Chain and residue of each atom, and the chains.
///
/// A residue is what has one number and insertion code in a chain: alternate locations and models have the same. A
/// modified residue (a `hetero` one) belongs to the chain if it has an alpha carbon and stands within the polymer.
fn residues(atoms: &[Record]) -> (Vec<Option<(usize, usize)>>, Vec<Chain>) {
    let key = |atom: &Record| (atom.chain.clone(), atom.residue.clone());
    let backbone = atoms.iter().filter(|atom| atom.hetero && atom.alpha && !atom.apart);
    let modified: HashSet<(String, String)> = backbone.map(key).collect();
    let mut chains: Vec<Chain> = vec![];
    let mut chain_at: HashMap<&str, usize> = HashMap::new();
    let mut residue_at: HashMap<(usize, &str), usize> = HashMap::new();
    let places = atoms.iter().map(|atom| {
        if atom.hetero && (atom.apart || !modified.contains(&key(atom))) {
            return None;
        }
        let chain = *chain_at.entry(&atom.chain).or_insert_with(|| {
            chains.push(Chain { name: atom.chain.clone(), residues: vec![] });
            chains.len() - 1
        });
        let residues = &mut chains[chain].residues;
        let residue = *residue_at.entry((chain, &atom.residue)).or_insert_with(|| {
            residues.push(Residue { number: atom.number.filter(|_| !atom.inserted) });
            residues.len() - 1
        });
        Some((chain, residue))
    });
    let places = places.collect();
    (places, chains)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
