//! Atoms of PDB files: records of fixed columns (format 3.3, "Coordinate Section").

use super::Record;
use std::collections::HashSet;

/// Columns of the B-factor, from 0.
const B_FACTOR: std::ops::Range<usize> = 60..66;

/// The atoms of a file; an error has the byte at which the line begins.
pub(super) fn atoms(text: &[u8]) -> Result<Vec<Record>, (usize, String)> {
    let mut atoms = vec![];
    // Chains of this model that have ended.
    let mut ended: HashSet<u8> = HashSet::new();
    let mut last_chain = b' ';
    let mut start = 0;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let at = start;
        start += line.len();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let hetero = line.starts_with(b"HETATM");
        if line.starts_with(b"MODEL ") || line.starts_with(b"ENDMDL") {
            ended.clear();
        } else if line.starts_with(b"TER") && matches!(line.get(3), None | Some(b' ')) {
            ended.insert(line.get(21).copied().unwrap_or(last_chain));
        } else if hetero || line.starts_with(b"ATOM  ") {
            if line.len() < 54 {
                let columns = line.len();
                return Err((
                    at,
                    format!(
                        "an atom's line ends after {columns} columns, before its coordinates do; fetch the file again"
                    ),
                ));
            }
            let field =
                |columns: std::ops::Range<usize>| String::from_utf8_lossy(&line[columns]).trim().to_owned();
            let chain = line[21];
            last_chain = chain;
            atoms.push(Record {
                b_factor: at + B_FACTOR.start.min(line.len())..at + B_FACTOR.end.min(line.len()),
                blanks: B_FACTOR.start.saturating_sub(line.len()),
                chain: field(21..22),
                residue: String::from_utf8_lossy(&line[22..27]).into_owned(),
                number: field(22..26).parse().ok(),
                inserted: line[26] != b' ',
                hetero,
                // "CA  " is calcium.
                alpha: &line[12..16] == b" CA ",
                apart: ended.contains(&chain),
            });
        }
    }
    Ok(atoms)
}
