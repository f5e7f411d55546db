//! Structures written by hand: what is a residue, what a B-factor, and what stays as it is.

use super::*;

/// A line of a PDB file: record, atom as its four columns, alternate location, residue, chain, number, insertion code.
fn line(
    record: &str,
    atom: &str,
    alt: char,
    residue: &str,
    chain: char,
    number: &str,
    insertion: char,
) -> String {
    format!(
        "{record:<6}{:>5} {atom:<4}{alt}{residue:>3} {chain}{number:>4}{insertion}   {:>8.3}{:>8.3}{:>8.3}{:>6.2}{:>6.2}          {:>2}\n",
        7,
        11.104,
        -6.134,
        0.5,
        1.0,
        42.25,
        atom.trim().chars().next().unwrap()
    )
}

fn atom(atom: &str, residue: &str, chain: char, number: &str) -> String {
    line("ATOM", atom, ' ', residue, chain, number, ' ')
}

/// A chain as deposited: numbers below 1, an insertion, alternate locations, two residues at one place, a modified residue,
/// and behind its end a ligand that is an amino acid, calcium and water.
fn awkward() -> String {
    let parts = [
        "HEADER    TOXIN                                   01-JAN-70   0XXX\n".to_owned(),
        "REMARK   2 RESOLUTION. 1.00 ANGSTROMS. ATOM  \n".to_owned(),
        atom(" N  ", "GLY", 'A', "-1"),
        atom(" CA ", "GLY", 'A', "-1"),
        atom(" CA ", "CYS", 'A', "52"),
        line("ATOM", " CA ", ' ', "CYS", 'A', "52", 'A'),
        line("ATOM", " CA ", 'A', "SER", 'A', "53", ' '),
        line("ATOM", " CA ", 'B', "THR", 'A', "53", ' '),
        "ANISOU    7  CA AS ER A  53      800    900   1000    100    200    300       C\n".to_owned(),
        line("HETATM", " N  ", ' ', "MSE", 'A', "54", ' '),
        line("HETATM", " CA ", ' ', "MSE", 'A', "54", ' '),
        "TER       8      MSE A  54\n".to_owned(),
        atom(" CA ", "LYS", 'B', "1"),
        "TER\n".to_owned(),
        line("HETATM", " CA ", ' ', "GLU", 'A', "201", ' '),
        line("HETATM", "CA  ", ' ', " CA", 'A', "202", ' '),
        line("HETATM", " O  ", ' ', "HOH", 'A', "203", ' '),
        "END\n".to_owned(),
    ];
    parts.concat()
}

fn parse(text: &str) -> Structure {
    Structure::parse(Path::new("x.pdb"), text.as_bytes().to_vec()).unwrap()
}

fn error(text: &str) -> String {
    Structure::parse(Path::new("x.pdb"), text.as_bytes().to_vec()).unwrap_err().to_string()
}

fn lengths(structure: &Structure) -> Vec<(&str, usize)> {
    structure.chains().iter().map(|chain| (chain.name.as_str(), chain.residues.len())).collect()
}

/// B-factors of the atoms' lines, by the columns of the format.
fn b_factors(text: &[u8]) -> Vec<f64> {
    let text = std::str::from_utf8(text).unwrap();
    let atoms = text.lines().filter(|line| line.starts_with("ATOM  ") || line.starts_with("HETATM"));
    atoms.map(|line| line[60..66].trim().parse().unwrap()).collect()
}

/// The text without columns 61 to 66 of the atoms' lines.
fn rest(text: &str) -> Vec<String> {
    let is_atom = |line: &str| line.starts_with("ATOM  ") || line.starts_with("HETATM");
    let cut =
        |line: &str| if is_atom(line) { format!("{}{}", &line[..60], &line[66..]) } else { line.to_owned() };
    text.split_inclusive('\n').map(cut).collect()
}

#[test]
fn residues_of_a_pdb_file_are_those_of_the_chain_and_all_else_stays() {
    let text = awkward();
    let structure = parse(&text);
    assert_eq!(structure.format(), Format::Pdb);
    assert_eq!(lengths(&structure), [("A", 5), ("B", 1)]);
    let numbers: Vec<Option<i64>> = structure.chains()[0].residues.iter().map(|r| r.number).collect();
    assert_eq!(numbers, [Some(-1), Some(52), None, Some(53), Some(54)]);
    let placed = structure.place(("P1", 5), &[], Matching::Order).unwrap();
    assert_eq!((placed.chains.as_slice(), placed.residues), (["A".to_owned()].as_slice(), 5));
    let out = structure.with_b_factors(&placed, &[10.0, 20.0, -100.0, 40.456, 100.0]);
    let expected = [10.0, 10.0, 20.0, -100.0, 40.46, 40.46, 100.0, 100.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(b_factors(&out), expected);
    assert_eq!(rest(std::str::from_utf8(&out).unwrap()), rest(&text));
}

#[test]
fn models_line_ends_and_short_lines_are_kept() {
    let model = atom(" CA ", "GLY", 'A', "1") + &atom(" CA ", "ALA", 'A', "2") + "TER\n";
    let text =
        format!("MODEL        1\n{model}ENDMDL\nMODEL        2\n{model}ENDMDL\n").replace('\n', "\r\n");
    let structure = parse(&text);
    assert_eq!(lengths(&structure), [("A", 2)]);
    let placed = structure.place(("P1", 2), &[], Matching::Order).unwrap();
    let out = structure.with_b_factors(&placed, &[1.0, 2.0]);
    assert_eq!(b_factors(&out), [1.0, 2.0, 1.0, 2.0]);
    assert_eq!(rest(std::str::from_utf8(&out).unwrap()), rest(&text));
    // Lines that end before the B-factor get one; bytes that are no UTF-8 stay.
    let mut text = b"REMARK \xe9\n".to_vec();
    text.extend_from_slice(&atom(" CA ", "GLY", ' ', "1").as_bytes()[..54]);
    let structure = Structure::parse(Path::new("x.pdb"), text.clone()).unwrap();
    let placed = structure.place(("P1", 1), &[], Matching::Order).unwrap();
    let out = structure.with_b_factors(&placed, &[7.5]);
    assert_eq!(out[..text.len()], text);
    assert_eq!(&out[text.len()..], b"        7.50");
}

#[test]
fn a_modified_residue_without_the_end_of_its_chain_belongs_to_it() {
    let modified = line("HETATM", " CA ", ' ', "MSE", 'A', "2", ' ');
    let text = atom(" CA ", "GLY", 'A', "1") + &modified + &line("HETATM", " O  ", ' ', "HOH", 'A', "3", ' ');
    assert_eq!(lengths(&parse(&text)), [("A", 2)]);
}

/// The chain of [`awkward`] as the PDB writes mmCIF, without its second residue of one place.
const CIF: &str = "\
# a comment, and data_ in it
data_0XXX
_entry.id   0XXX
_struct.title   'It''s a toxin' # 'not this'
_struct.pdbx_descriptor
;loop_
_atom_site.group_PDB
is text here
;
loop_
_entity.id
_entity.details
1 'a ; b'
2 \"loop_\"
#
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.type_symbol
_atom_site.label_atom_id
_atom_site.label_alt_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_seq_id
_atom_site.pdbx_PDB_ins_code
_atom_site.Cartn_x
_atom_site.B_iso_or_equiv
_atom_site.auth_seq_id
_atom_site.auth_asym_id
_atom_site.pdbx_PDB_model_num
ATOM   1 N N     . GLY A 1 ? 11.104 42.25  -1  H 1
ATOM   2 C CA    . GLY A 1 ? 11.104 42.25  -1  H 1
ATOM   3 C CA    . CYS A 2 ? 11.104 8.1    52  H 1
ATOM   4 C CA    . CYS A 3 A 11.104 \"142.25\" 52  H 1
ATOM   5 O \"O5'\" A SER A 4 ? 11.104 ?      53  H 1
ATOM   6 C CA    B SER A 4 ? 11.104 42.25  53  H 1
HETATM 7 C CA    . MSE A 5 ? 11.104 42.25  54  H 1
HETATM 8 C CA    . GLU B . ? 11.104 42.25  201 H 1
HETATM 9 CA CA   . CA  C . ? 11.104 42.25  202 H 1
_exptl.entry_id   0XXX
";

/// Rows of the loop's values, split at blanks.
fn cif_rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter(|line| line.starts_with("ATOM ") || line.starts_with("HETATM "));
    lines.map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn residues_of_an_mmcif_file_are_those_of_the_polymer_and_all_else_stays() {
    let structure = parse(CIF);
    assert_eq!((structure.format(), lengths(&structure)), (Format::Cif, vec![("H", 5)]));
    let placed = structure.place(("P1", 5), &["H".into()], Matching::Order).unwrap();
    let out = structure.with_b_factors(&placed, &[10.0, 20.0, -100.0, 40.0, 100.0]);
    let out = String::from_utf8(out).unwrap();
    let b: Vec<&str> = cif_rows(&out).iter().map(|row| row[10]).collect();
    assert_eq!(b, ["10.00", "10.00", "20.00", "-100.0", "40.00", "40.00", "100.00", "0.00", "0.00"]);
    for (old, new) in cif_rows(CIF).into_iter().zip(cif_rows(&out)) {
        assert_eq!((&old[..10], &old[11..]), (&new[..10], &new[11..]));
    }
    let others = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with("ATOM ") && !line.starts_with("HETATM "));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(others(&out), others(CIF));
    assert_eq!(structure.with_b_factors(&placed, &[0.0; 5]), structure.with_b_factors(&placed, &[]));
}

#[test]
fn several_models_and_files_without_what_only_the_pdb_writes_are_read() {
    let two = CIF.replace("_exptl.entry_id   0XXX\n", "")
        + "ATOM 10 C CA . GLY A 1 ? 11.104 42.25 -1 H 2\nATOM 11 C CA . CYS A 2 ? 11.104 42.25 52 H 2\n";
    let structure = parse(&two);
    assert_eq!(lengths(&structure), [("H", 5)]);
    let placed = structure.place(("P1", 5), &[], Matching::Order).unwrap();
    let out = String::from_utf8(structure.with_b_factors(&placed, &[1.0, 2.0, 3.0, 4.0, 5.0])).unwrap();
    assert_eq!(cif_rows(&out)[9..].iter().map(|row| row[10]).collect::<Vec<_>>(), ["1.00", "2.00"]);
    let plain = "data_x\nloop_\n_atom_site.label_asym_id\n_atom_site.label_seq_id\n_atom_site.B_iso_or_equiv\nA 1 5\nA 2 5\n";
    assert_eq!(lengths(&parse(plain)), [("A", 2)]);
}

#[test]
fn a_modified_residue_that_has_no_number_in_the_sequence_belongs_to_the_chain_around_it() {
    // As Biopython writes it: numbers of standard residues alone, and labels that divide chains anew.
    let rows =
        [("ATOM", "C", "CA", "GLY", "1"), ("HETATM", "C", "CA", "MSE", "."), ("ATOM", "C", "CA", "GLY", "3")];
    let ligand = [("HETATM", "C", "CA", "GLU", ".")];
    let write = |model: u32| {
        let all = rows.iter().chain(&ligand).enumerate();
        let row = |(i, (group, element, atom, residue, number)): (usize, &(&str, &str, &str, &str, &str))| {
            format!(
                "{group} {element} {atom} {residue} {} {number} 9.0 {} A {model}\n",
                ["A", "B"][usize::from(*group == "HETATM")],
                i + 1
            )
        };
        all.map(row).collect::<String>()
    };
    let head = "data_x\nloop_\n_atom_site.group_PDB\n_atom_site.type_symbol\n_atom_site.label_atom_id\n\
                _atom_site.label_comp_id\n_atom_site.label_asym_id\n_atom_site.label_seq_id\n\
                _atom_site.B_iso_or_equiv\n_atom_site.auth_seq_id\n_atom_site.auth_asym_id\n\
                _atom_site.pdbx_PDB_model_num\n";
    assert_eq!(lengths(&parse(&(head.to_owned() + &write(1) + &write(2)))), [("A", 3)]);
}

#[test]
fn what_is_no_structure_is_told_with_its_line() {
    assert!(error("HEADER\n").contains("x.pdb: holds no atoms as PDB (lines ATOM) or mmCIF"));
    assert!(error("data_x\n_cell.a 1\n").contains("holds no atoms"));
    assert!(error("MMTF\0\u{1}").contains("neither PDB nor mmCIF"));
    assert!(error(&line("HETATM", " O  ", ' ', "HOH", 'A', "1", ' ')).contains("ligands or water alone"));
    let short = format!("{}ATOM      8  CA  GLY A   2\n", atom(" CA ", "GLY", 'A', "1"));
    assert!(
        error(&short).contains("x.pdb: line 2: an atom's line ends after 26 columns"),
        "{}",
        error(&short)
    );
    let lacks = CIF.replace("_atom_site.B_iso_or_equiv\n", "");
    assert!(error(&lacks).contains("has no column B_iso_or_equiv"), "{}", error(&lacks));
    let cut = CIF.replace(" 202 H 1\n_exptl.entry_id   0XXX\n", "\n");
    assert!(
        error(&cut).contains("line 39: the last atom has 11 values where the loop has 14 columns"),
        "{}",
        error(&cut)
    );
    assert!(error("data_x\n_a 'b\nc'\n").contains("line 2: a quoted text has no end"));
    assert!(error("data_x\n_a\n;b\n").contains("line 3: a text that begins with ; has no end"));
}

#[test]
fn rows_that_are_not_the_residues_are_refused_with_what_to_do() {
    let structure = parse(&awkward());
    let refused = |n, chains: &[&str], by| {
        let chains: Vec<String> = chains.iter().map(|&name| name.to_owned()).collect();
        structure.place(("P1", n), &chains, by).unwrap_err().to_string()
    };
    let text = refused(7, &[], Matching::Order);
    assert!(text.contains(
        "no chain has 7 residues, one for each row of P1; its chains: A (5 residues), B (1 residues)"
    ));
    assert!(text.contains("add --tokens 1,1") && text.contains("--match number"), "{text}");
    let text = refused(6, &["A"], Matching::Order);
    assert!(text.contains("its chain A has 5 residues, and P1 has 6 rows") && text.contains("--tokens 0,1"));
    assert!(!refused(4, &["A"], Matching::Order).contains("--tokens"));
    assert!(refused(5, &["A", "B"], Matching::Order).contains("its chain B has 1 residues"));
    assert!(
        refused(5, &["C"], Matching::Order).contains("has no chain \"C\"; its chains: A (5 residues), B")
    );
    assert!(
        refused(60, &[], Matching::Number).contains("has several chains: A (5 residues), B (1 residues)")
    );
    assert!(refused(3, &["A"], Matching::Number).contains("no residue has a number from 1 to 3"));
}

#[test]
fn residues_may_be_missing_where_their_numbers_say_which_they_are() {
    let structure = parse(&awkward());
    let placed = structure.place(("P1", 53), &["A".into()], Matching::Number).unwrap();
    // Numbers below 1, with an insertion code, or behind the last row have no row.
    assert_eq!((placed.residues, placed.without_row), (2, 3));
    let values: Vec<f64> = (1..=53).map(f64::from).collect();
    let b = b_factors(&structure.with_b_factors(&placed, &values));
    assert_eq!(b[..8], [0.0, 0.0, 52.0, 0.0, 53.0, 53.0, 0.0, 0.0]);
}

#[test]
fn chains_that_are_the_same_protein_are_coloured_together() {
    let chain = |name| atom(" CA ", "GLY", name, "1") + &atom(" CA ", "ALA", name, "2") + "TER\n";
    let structure = parse(&(chain('A') + &chain('B') + &chain('C')));
    let first = structure.place(("P1", 2), &[], Matching::Order).unwrap();
    assert_eq!((first.chains, first.alike), (vec!["A".to_owned()], vec!["B".to_owned(), "C".to_owned()]));
    let both = structure.place(("P1", 2), &["C".into(), "A".into()], Matching::Order).unwrap();
    assert_eq!(b_factors(&structure.with_b_factors(&both, &[1.0, 2.0])), [1.0, 2.0, 0.0, 0.0, 1.0, 2.0]);
}

#[test]
fn gzipped_files_are_read_and_damaged_ones_told() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.cif.gz");
    let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    packed.write_all(CIF.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    std::fs::write(&path, &packed).unwrap();
    assert_eq!(Structure::read(&path).unwrap().text, CIF.as_bytes());
    std::fs::write(&path, &packed[..packed.len() / 2]).unwrap();
    let error = Structure::read(&path).unwrap_err().to_string();
    assert!(error.contains("x.cif.gz: gzip cannot unpack it"), "{error}");
}
