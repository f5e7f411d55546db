//! Atoms of mmCIF files: the loop of `_atom_site` (CIF 1.1, dictionary of the PDB).

use super::Record;
use std::collections::HashSet;
use std::ops::Range;

/// What the tags of atoms begin with.
const CATEGORY: &str = "_atom_site.";

/// What the file is made of.
#[derive(Debug, Clone, PartialEq)]
struct Token {
    /// Its bytes, quotes included.
    bytes: Range<usize>,
    /// In quotes, or a text of several lines: never a word of the language.
    quoted: bool,
}

/// Whether a text is a CIF file: behind comments it begins with `data_`.
pub(super) fn is_cif(text: &[u8]) -> bool {
    let mut lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(b"#"));
    first.is_some_and(|line| starts_with(line, b"data_"))
}

fn starts_with(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}

/// The atoms of a file; an error has the byte that it is about.
pub(super) fn atoms(text: &[u8]) -> Result<Vec<Record>, (usize, String)> {
    let mut atoms: Vec<Record> = vec![];
    let mut models: Vec<Vec<u8>> = vec![];
    let mut tokens = Tokens { text, at: 0 };
    let mut next = tokens.next()?;
    while let Some(token) = next {
        next = tokens.next()?;
        if token.quoted || !text[token.bytes.clone()].eq_ignore_ascii_case(b"loop_") {
            continue;
        }
        let mut tags = vec![];
        while let Some(tag) = next.take_if(|token| is_tag(text, token)) {
            tags.push(String::from_utf8_lossy(&text[tag.bytes]).into_owned());
            next = tokens.next()?;
        }
        let columns = tags
            .first()
            .is_some_and(|tag| starts_with(tag.as_bytes(), CATEGORY.as_bytes()))
            .then(|| Columns::of(&tags));
        let columns = columns.transpose().map_err(|what| (token.bytes.start, what))?;
        let mut row: Vec<Range<usize>> = Vec::with_capacity(tags.len());
        while let Some(value) = next.take_if(|token| !is_word(text, token)) {
            row.push(value.bytes);
            if let Some(columns) = columns.as_ref().filter(|_| row.len() == tags.len()) {
                atoms.push(columns.record(text, &row));
                models.push(columns.model(text, &row));
            }
            if row.len() == tags.len() {
                row.clear();
            }
            next = tokens.next()?;
        }
        if columns.is_some() && !row.is_empty() {
            let what = format!(
                "the last atom has {} values where the loop has {} columns; fetch the file again",
                row.len(),
                tags.len()
            );
            return Err((row[0].start, what));
        }
    }
    // Biopython numbers standard residues alone; another one among those of its chain belongs to it all the same. The PDB
    // has ligands and water behind all chains of a model.
    let mut among = HashSet::new();
    for (atom, model) in atoms.iter_mut().zip(&models).rev() {
        let place = (model, atom.chain.clone());
        if !atom.hetero {
            among.insert(place);
        } else if among.contains(&place) {
            atom.apart = false;
        }
    }
    Ok(atoms)
}

fn is_tag(text: &[u8], token: &Token) -> bool {
    !token.quoted && text[token.bytes.start] == b'_'
}

/// Whether a token ends the values of a loop.
fn is_word(text: &[u8], token: &Token) -> bool {
    let word = &text[token.bytes.clone()];
    let words: [&[u8]; 5] = [b"data_", b"loop_", b"save_", b"global_", b"stop_"];
    !token.quoted && (word[0] == b'_' || words.iter().any(|start| starts_with(word, start)))
}

/// Where the loop has what is needed of an atom.
struct Columns {
    b_factor: usize,
    chain: usize,
    number: usize,
    insertion: Option<usize>,
    group: Option<usize>,
    /// Number in the sequence; `.` for what is no part of a polymer.
    sequence: Option<usize>,
    atom: Option<usize>,
    element: Option<usize>,
    model: Option<usize>,
}

impl Columns {
    fn of(tags: &[String]) -> Result<Self, String> {
        let find = |names: &[&str]| {
            let column = |name: &&str| {
                tags.iter().position(|tag| {
                    tag.get(CATEGORY.len()..).is_some_and(|tag| tag.eq_ignore_ascii_case(name))
                })
            };
            names.iter().find_map(column)
        };
        let need = |names: &[&str]| {
            find(names).ok_or_else(|| {
                format!(
                    "the loop of _atom_site has no column {}; give a file as the PDB or AlphaFold DB has it",
                    names[0]
                )
            })
        };
        Ok(Self {
            b_factor: need(&["B_iso_or_equiv"])?,
            // What viewers show, and people name.
            chain: need(&["auth_asym_id", "label_asym_id"])?,
            number: need(&["auth_seq_id", "label_seq_id"])?,
            insertion: find(&["pdbx_PDB_ins_code"]),
            group: find(&["group_PDB"]),
            sequence: find(&["label_seq_id"]),
            atom: find(&["label_atom_id", "auth_atom_id"]),
            element: find(&["type_symbol"]),
            model: find(&["pdbx_PDB_model_num"]),
        })
    }

    /// Model of an atom, whose values are `row`.
    fn model(&self, text: &[u8], row: &[Range<usize>]) -> Vec<u8> {
        self.model.map_or(vec![], |column| text[row[column].clone()].to_vec())
    }

    /// An atom, whose values are `row`.
    fn record(&self, text: &[u8], row: &[Range<usize>]) -> Record {
        let value =
            |column: usize| String::from_utf8_lossy(unquoted(&text[row[column].clone()])).into_owned();
        let known = |column: Option<usize>| column.map(value).filter(|value| value != "." && value != "?");
        let (number, insertion) = (value(self.number), known(self.insertion));
        let sequence = known(self.sequence);
        let element = known(self.element);
        Record {
            b_factor: row[self.b_factor].clone(),
            blanks: 0,
            chain: value(self.chain),
            number: number.parse().ok(),
            inserted: insertion.is_some(),
            residue: format!("{number} {}", insertion.unwrap_or_default()),
            hetero: known(self.group).is_some_and(|group| group == "HETATM"),
            alpha: known(self.atom).is_some_and(|name| name == "CA")
                && element.is_none_or(|element| element == "C"),
            apart: self.sequence.is_some() && sequence.is_none(),
        }
    }
}

/// A value without its quotes.
fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
        _ => value,
    }
}

/// Splits a CIF file.
struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

impl Tokens<'_> {
    /// The next token; `None` at the end.
    fn next(&mut self) -> Result<Option<Token>, (usize, String)> {
        let text = self.text;
        loop {
            match text.get(self.at) {
                None => return Ok(None),
                Some(byte) if byte.is_ascii_whitespace() => self.at += 1,
                Some(b'#') => self.at = self.end_of_line(),
                Some(_) => break,
            }
        }
        let start = self.at;
        let first = text[start];
        let starts_line = start == 0 || text[start - 1] == b'\n';
        let quoted = matches!(first, b'\'' | b'"') || (first == b';' && starts_line);
        let end = match first {
            b';' if starts_line => {
                let end = text[start..].windows(2).position(|pair| pair == b"\n;");
                start
                    + end.ok_or_else(|| {
                        (start, "a text that begins with ; has no end; fetch the file again".to_owned())
                    })?
                    + 2
            }
            b'\'' | b'"' => {
                let line = &text[start..self.end_of_line()];
                // A quote ends a text only before a blank.
                let closes =
                    |at: &usize| line[*at] == first && line.get(at + 1).is_none_or(u8::is_ascii_whitespace);
                let end = (1..line.len()).find(closes);
                start
                    + end
                        .ok_or_else(|| (start, "a quoted text has no end; fetch the file again".to_owned()))?
                    + 1
            }
            _ => {
                let end = text[start..].iter().position(u8::is_ascii_whitespace);
                end.map_or(text.len(), |end| start + end)
            }
        };
        self.at = end;
        Ok(Some(Token { bytes: start..end, quoted }))
    }

    fn end_of_line(&self) -> usize {
        let end = self.text[self.at..].iter().position(|&byte| byte == b'\n');
        end.map_or(self.text.len(), |end| self.at + end)
    }
}
