//! Scans that also write down where their descents end.
//!
//! Where two halves of a chunk score nearly alike, which of them is taken is a matter of rounding, and every later probe
//! depends on it. A test that knows where a descent ended can walk the same way, and ask of each turn whether rounding
//! excuses it. The product's kernels keep nothing of the kind: the store is put into their text here, right after the
//! one place where each of them takes a half.

use ihip_dsl::emit::{Argument, ArgumentKind, Element, Kernel};

/// Names of a chunk's bounds in the kernels that halve: one a thread, one a set of eight, one a descent of a team, or
/// one a lane.
const BOUNDS: [&str; 4] = ["[thread]", "[set]", "[i]", ""];

/// The kernel that halves chunks as `kernel` does and writes down where it ended; `None` where `kernel` halves none.
///
/// It takes two arguments more: `int* descents`, `[query blocks][query heads][chunks]`, and the entries of a row of it.
/// An entry is twice the first token that was left, plus 1 where any was left; those of chunks that nobody may see stay
/// as they were.
///
/// # Panics
/// Where the text does not have the shape that this module knows.
#[must_use]
pub fn recorded(kernel: &Kernel) -> Option<Kernel> {
    let text = &kernel.text;
    let bound = BOUNDS.into_iter().find(|bound| text.contains(&format!(" left{bound} = middle;\n")))?;
    let named = format!("{}_recorded", kernel.name);
    let text = once(kernel, text, &format!(") {}(", kernel.name), &format!(") {named}("));
    let text = once(kernel, &text, "_stride) {\n", "_stride, int* descents, int descent_stride) {\n");
    let taken = format!(" left{bound} = middle;\n");
    let (before, after) = text.split_once(&taken).expect("it was found");
    assert!(!after.contains(&taken), "{} takes halves in two places", kernel.name);
    let (closing, rest) = after.split_once('\n').expect("the end of a block");
    assert_eq!(closing.trim(), "}", "{}: what ends the choice", kernel.name);
    let indent = closing.trim_end_matches('}');
    let store = store(&text, bound).replace('\n', &format!("\n{indent}"));
    let text = format!("{before}{taken}{closing}\n{indent}{store}\n{rest}");
    let mut arguments = kernel.arguments.clone();
    arguments.push(Argument { name: "descents", kind: ArgumentKind::Output(Element::I32) });
    arguments.push(Argument { name: "descent_stride", kind: ArgumentKind::I32 });
    Some(Kernel { name: named, text, arguments, ..kernel.clone() })
}

/// `text` with `new` for the one `old`.
fn once(kernel: &Kernel, text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{} has {old:?} this many times", kernel.name);
    text.replacen(old, new, 1)
}

/// The statement that writes down what is left of the chunk whose bounds are `left` and `right` with `bound` after them.
fn store(text: &str, bound: &str) -> String {
    let prefill = text.contains("block = blockIdx.z");
    let block = if prefill { "block" } else { "0" };
    // A block of threads works for one query head or for those of a key-value head.
    let alone = text.contains("query_head = blockIdx.y");
    let (head, chunk) = match bound {
        "[thread]" if text.contains(" head = blockIdx.y, kv_head = head / GROUP") => {
            (Some("head"), "group * CHUNKS + thread")
        }
        "[thread]" => (None, "group * CHUNKS + thread"),
        "[set]" if text.contains(" head = first_head + warp % TEAMS") => (Some("head"), "base + set * 8 + down"),
        "[set]" => (None, "base + set * 8 + down"),
        "[i]" if alone => (Some("query_head"), "base + i * TEAMS + team"),
        "[i]" => (Some("kv_head * GROUP + (base + i * TEAMS + team) % GROUP"), "(base + i * TEAMS + team) / GROUP"),
        _ if text.contains("const int head = down % PROBES / 2;") => (Some("kv_head * GROUP + head"), "chunk"),
        _ if alone => (Some("query_head"), "chunk"),
        _ => (None, "chunk"),
    };
    let (every, head) = match head {
        Some(head) => ("", head),
        None => ("for (int own = 0; own < GROUP; ++own)\n    ", "kv_head * GROUP + own"),
    };
    format!(
        "{every}descents[static_cast<unsigned long long>({block} * QUERY_HEADS + {head}) * descent_stride + {chunk}] =\n        \
         2 * left{bound} + (left{bound} < right{bound});"
    )
}
