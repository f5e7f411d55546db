//! What each kernel takes of a card, read from the assembler's words.

/// Registers, memory and spills of one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// Name as the driver finds it.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block, in bytes.
    pub shared: u32,
    /// Stack frame of a thread, in bytes.
    pub stack: u32,
    /// Bytes that a thread stores because registers ran out.
    pub spill_stores: u32,
    /// Bytes that a thread loads because registers ran out.
    pub spill_loads: u32,
}

/// The kernels in the log of a `compile` that was asked for their resources, by name.
pub fn resources(log: &str) -> Vec<Resources> {
    let mut kernels: Vec<Resources> = Vec::new();
    // Lines that are about a device function, not about the kernel named last.
    let mut elsewhere = false;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(Resources { kernel, ..Resources::default() });
            elsewhere = false;
        }
        let Some(current) = kernels.last_mut() else { continue };
        if let Some((_, name)) = line.split_once("Function properties for ") {
            elsewhere = name.trim() != current.kernel;
        } else if line.contains("bytes stack frame") && !elsewhere {
            current.stack = before(line, " bytes stack frame");
            current.spill_stores = before(line, " bytes spill stores");
            current.spill_loads = before(line, " bytes spill loads");
        } else if line.contains(" registers") && line.contains("Used ") {
            current.registers = before(line, " registers");
            current.shared = before(line, " bytes smem");
        }
    }
    kernels.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    kernels
}

/// The number that stands before `words`; 0 where they do not stand.
fn before(line: &str, words: &str) -> u32 {
    let head = line.split_once(words).map_or("", |(head, _)| head);
    let digits = head.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

/// The lines of a log that warn.
pub fn warnings(log: &str) -> Vec<&str> {
    // NVRTC remarks once, after a warning, how warnings can be hidden.
    let warns = |line: &&str| !line.starts_with("Remark:") && line.to_ascii_lowercase().contains("warning");
    log.lines().filter(warns).collect()
}

/// A Markdown table: a row per kernel, a column per architecture; registers per thread, with what is spilled where
/// anything is.
pub fn markdown(columns: &[(super::Arch, Vec<Resources>)]) -> String {
    let mut names: Vec<(&str, u32)> = columns
        .iter()
        .flat_map(|(_, kernels)| kernels.iter().map(|k| (k.kernel.as_str(), k.shared)))
        .collect();
    names.sort_unstable();
    names.dedup_by_key(|name| name.0);
    let heads: String = columns.iter().map(|(arch, _)| format!(" {arch} |")).collect();
    let mut out = format!(
        "| kernel | static shared, bytes |{heads}\n| --- | ---: |{}\n",
        " ---: |".repeat(columns.len())
    );
    for (name, shared) in names {
        out += &format!("| `{name}` | {shared} |");
        for (_, kernels) in columns {
            let cell = kernels.iter().find(|k| k.kernel == name).map_or("-".to_owned(), |k| {
                match (k.spill_stores, k.spill_loads) {
                    (0, 0) => k.registers.to_string(),
                    (stores, loads) => format!("{} (spills {stores} + {loads} bytes)", k.registers),
                }
            });
            out += &format!(" {cell} |");
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
a.cu(3): warning #177-D: variable \"x\" was declared but never referenced
Remark: The warnings can be suppressed with \"-diag-suppress <warning-number>\"
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'topk' for 'sm_90'
ptxas info    : Function properties for topk
ptxas         .     16 bytes stack frame, 24 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 4096 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 12.3 ms
ptxas info    : Compiling entry function 'adam' for 'sm_90'
ptxas info    : Function properties for adam
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers
ptxas info    : Function properties for helper
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
";

    #[test]
    fn the_assemblers_words_become_a_table() {
        let topk = Resources {
            kernel: "topk".into(),
            registers: 255,
            shared: 4096,
            stack: 16,
            spill_stores: 24,
            spill_loads: 32,
        };
        let adam = Resources { kernel: "adam".into(), registers: 30, ..Resources::default() };
        assert_eq!(resources(LOG), [adam, topk]);
        assert_eq!(warnings(LOG).len(), 1);
        let table = markdown(&[(super::super::Arch(90), resources(LOG))]);
        assert!(
            table.ends_with("| `adam` | 0 | 30 |\n| `topk` | 4096 | 255 (spills 24 + 32 bytes) |\n"),
            "{table}"
        );
        assert!(resources("").is_empty());
    }
}
