//! Prefill on tensor cores: which token is in which slot of a tile of keys, found well before it is multiplied.

use super::visible::{Phase, Visible};

/// How many tiles there are of each kind, and where a thread finds its slot of one. Shared memory holds the slots of
/// `held` tiles.
pub(super) fn find(visible: &Visible, held: usize) -> String {
    let text = |text: &str| adapt(visible, text).replace("$HELD", &held.to_string());
    let find = |cases: &str| {
        let cases = cases.trim_start_matches('\n');
        text(&FIND.replace("$DECLARED", &visible.declare("position")).replace("$CASES\n", cases))
    };
    if *visible == Visible::All {
        return format!("    const int tiles = last / TILE_KEYS + 1;\n{}", find(ALL_CASES));
    }
    let place = |text: String| text.replace("\n                ", "\n            ");
    let (counts, upcoming, listed) = if visible.has_list() {
        let listed = place(visible.place_listed(Phase::Prefill, "position", "slot"));
        (LISTED_TILES, UPCOMING, format!("{LISTED_CASE}{listed}\n        }} else "))
    } else {
        ("    constexpr int listed_tiles = 0;\n", "", "        ".to_owned())
    };
    let cases = OTHER_CASES
        .replace("$LISTED", listed.trim_start_matches('\n'))
        .replace("$SINK", &place(visible.place_sink(Phase::Prefill, "position", "at")))
        .replace("$RECENT", &place(visible.place_recent("position", "at")));
    let counts = COUNTS.replace("$LISTED_TILES\n", counts.trim_start_matches('\n'));
    format!("{counts}{upcoming}{}", find(&cases))
}

/// Fills in where keys are turned to.
fn adapt(visible: &Visible, text: &str) -> String {
    let (declare, keep, store) = match (visible.rotates(), visible.blends()) {
        (false, _) => ("", "", ""),
        (true, false) => (
            ", next_position = 0",
            "        next_position = token == NOWHERE ? 0 : position;\n",
            "        slot_positions[slot] = next_position;\n",
        ),
        (true, true) => (
            ", next_position = 0, next_extended = 0",
            "        next_position = token == NOWHERE ? 0 : position;\n        next_extended = token == NOWHERE ? 0 : extended;\n",
            "        slot_positions[slot] = next_position;\n        slot_extended[slot] = next_extended;\n",
        ),
    };
    text.replace("$DECLARE_POSITION", declare).replace("$KEEP_POSITION\n", keep).replace("$STORE_POSITION\n", store)
}

const LISTED_TILES: &str = "    const int listed_tiles = (count * BLOCK + TILE_KEYS - 1) / TILE_KEYS;\n";

const COUNTS: &str = r"
$LISTED_TILES
    // A sink leaves its group for the window's where it is near.
    const int sinks = max(0, min(SINK, last - WINDOW + 1)), sink_tiles = (sinks + TILE_KEYS - 1) / TILE_KEYS;
    const int window_first = max(0, tile_first - WINDOW + 1);
    const int tiles = listed_tiles + sink_tiles + (last - window_first) / TILE_KEYS + 1;
";

const UPCOMING: &str = r"
    // The entry of the list that a thread's slot of a tile belongs to.
    const auto entry = [&](int tile_index) {
        const int slot = tile_index * TILE_KEYS + thread;
        return thread < TILE_KEYS && slot < count * BLOCK ? list[slot / BLOCK] : 0;
    };
    int upcoming = entry(0);
";

const FIND: &str = r"
    // Finds a thread's slot of a tile; what it loads is not waited for before it is stored.
    int next_token = NOWHERE$DECLARE_POSITION;
    unsigned next_row = 0;
    const auto find = [&](int tile_index) {
        if (thread >= TILE_KEYS || tile_index >= tiles) return;
        int token = NOWHERE$DECLARED;
$CASES
        next_token = token;
        next_row = cache_row(page_table, token == NOWHERE ? 0 : token, kv_head);
$KEEP_POSITION
    };
    const auto store = [&](int tile_index) {
        if (thread >= TILE_KEYS || tile_index >= tiles) return;
        const int slot = tile_index % $HELD * TILE_KEYS + thread;
        slot_tokens[slot] = next_token;
        slot_rows[slot] = next_row;
$STORE_POSITION
    };
";

const ALL_CASES: &str = r"
        const int at = tile_index * TILE_KEYS + thread;
        if (at <= last) token = at;
";

const LISTED_CASE: &str = r"
        if (tile_index < listed_tiles) {
            const int slot = tile_index * TILE_KEYS + thread;
            if (slot < count * BLOCK) token = upcoming + slot % BLOCK;
            if (token < SINK || token > last) token = NOWHERE;  // sinks are seen as sinks";

const OTHER_CASES: &str = r"
$LISTEDif (tile_index < listed_tiles + sink_tiles) {
            const int at = (tile_index - listed_tiles) * TILE_KEYS + thread;
            if (at < sinks) token = at;$SINK
        } else {
            const int at = window_first + (tile_index - listed_tiles - sink_tiles) * TILE_KEYS + thread;
            if (at <= last) token = at;$RECENT
        }
";
