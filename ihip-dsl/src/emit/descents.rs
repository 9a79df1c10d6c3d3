//! Descents of prefill on tensor cores: the texts of [`super::scan_tiles`].

pub(super) const DESCEND: &str = r"
    const int across = lane % 4, down = lane / 4;
    const unsigned* const own_factors = factors + warp % TEAMS * COPIES * 2 * PART + lane * 4;
$CHUNKS
$PAGES
        // A lane loads parts of the probes of chunk `down` of each set.
        int left[SETS], right[SETS]$AT;
        float best[SETS];
        for (int set = 0; set < SETS; ++set) {
            const int chunk = base + set * 8 + down;
            left[set] = $START(min(chunk, chunks - 1));
            right[set] = chunk < chunks ? $CLAMP : left[set];
$PAGES_AT
            best[set] = LOWEST;
        }
        for (int halving = 0; halving < HALVINGS; ++halving) {
$PROBES
            float score[SETS][2];
            for (int set = 0; set < SETS; ++set) score[set][0] = score[set][1] = LOWEST;
$PRODUCTS
$BEST_ROW
            // A tie goes right. $SENTENCE
            for (int set = 0; set < SETS; ++set) {
                if (!(left[set] < right[set] && left[set] <= limit)) continue;
                const int middle = (left[set] + right[set]) / 2;
                if (score[set][0] > score[set][1]) {
                    right[set] = middle;
                } else {
                    left[set] = middle;
                }
                best[set] = $BEST;
            }
        }
        for (int set = 0; set < SETS; ++set)
            if (across == 0 && best[set] > LOWEST)
                atomic_max(&scores[$SCORE_ROW + base + set * 8 + down], ordered(max(best[set], NEVER)));
$READ
    }
}
";

/// Both probes of each chunk.
pub(super) const BOTH_SIDES: &str = r"
            // The $TOKEN token of each half stands for it. What is loaded for an inactive chunk is ignored.
            Probe probe[SETS][2];
$POSITION
#pragma unroll
            for (int set = 0; set < SETS; ++set) {
                const bool active = left[set] < right[set] && left[set] <= limit;
                const int middle = (left[set] + right[set]) / 2;
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const int token = side == 0 ? $LEFT : $RIGHT;
$PAGE
$MOVED
                    probe[set][side] = load_probe(keys, row, across);
                }
            }
$TURN
";

/// The probes of each chunk that take one copy of the queries.
pub(super) const ONE_SIDE: &str = r"
                // The $TOKEN token of each half stands for it. What is loaded for an inactive chunk is ignored.
#pragma unroll
                for (int set = 0; set < SETS; ++set) {
$SAME
                    const bool active = left[set] < right[set] && left[set] <= limit;
                    const int middle = (left[set] + right[set]) / 2;
                    const int token = copy == 0 ? $LEFT : $RIGHT;
$PAGE
                    probe[set][0] = load_probe(keys, row, across);
                }
";

pub(super) const SAME: &str = r"
                    if (copy > 0 && halving == HALVINGS - 1) continue;  // one token is left, which stands for both halves
";

pub(super) const OWN_CHUNKS: &str = r"
    const int first_chunk = (blockIdx.x * (WARPS / TEAMS) + warp / TEAMS) * CHUNKS;
    for (int base = first_chunk; base < chunks; base += gridDim.x * (WARPS / TEAMS) * CHUNKS) {
        // The list is ascending: where a warp's first chunk lies beyond the limit, so does every later one.
        if ($START(base) > limit) break;
";

pub(super) const BLOCK_CHUNKS: &str = r"
    // Warps go on together: they share what is in shared memory.
    for (int group = blockIdx.x * WARPS * CHUNKS; group < chunks; group += gridDim.x * WARPS * CHUNKS) {
        // The list is ascending: where a group's first chunk lies beyond the limit, so does every later one.
        if ($START(group) > limit) break;
        const int base = group + warp * CHUNKS;
";

pub(super) const PAGES: &str = r"
        unsigned* const pages = warp_pages + warp * CHUNKS * PAGES;
        for (int item = lane; item < CHUNKS * PAGES; item += 32) {
            const int chunk = min(base + item / PAGES, chunks - 1);
            pages[item] = page_table[min($START(chunk) / PAGE + item % PAGES, last / PAGE)];
        }
        sync_warp();
";

pub(super) const PAGES_AT: &str = r"
            pages_at[set] = (set * 8 + down) * PAGES - left[set] / PAGE;
";

pub(super) const ROW_OF_PAGE: &str = r"
                    const unsigned page = pages[pages_at[set] + (active ? token : left[set]) / PAGE];
                    const unsigned long long row = (page * KV_HEADS + kv_head) * PAGE + (active ? token % PAGE : 0);
";

pub(super) const ROW_OF_TABLE: &str = r"
                    const unsigned long long row = cache_row(page_table, active ? token : 0, kv_head);
";

pub(super) const READ: &str = r"
        sync_warp();  // the pages have been read
";

pub(super) const TURN_CHUNKS: &str = r"
            // A key's position is the index of its chunk in the list.
            unsigned rest[SETS][2][2 * STEPS];
            for (int set = 0; set < SETS; ++set) {
                const float2* const angles = &rope_table[min(base + set * 8 + down, chunks) * HALF];
                for (int pair = 0; pair < STEPS; ++pair) {
                    const Angles two = *reinterpret_cast<const Angles*>(&angles[first_element(pair, across)]);
                    for (int side = 0; side < 2; ++side) {
                        unsigned(&key)[2 * STEPS] = probe[set][side].at, (&over)[2 * STEPS] = rest[set][side];
$TURN_PAIR
                    }
                }
            }
";

pub(super) const PROBE_POSITION: &str = r"
            int position[SETS][2];
";

pub(super) const TURN_EXTENDED: &str = r"
            // A key's position is where it is brought back to.
            unsigned rest[SETS][2][2 * STEPS];
            for (int set = 0; set < SETS; ++set)
                for (int side = 0; side < 2; ++side) {
                    unsigned(&key)[2 * STEPS] = probe[set][side].at, (&over)[2 * STEPS] = rest[set][side];
                    const float2* const angles = &rope_table[position[set][side] * HALF];
                    for (int pair = 0; pair < STEPS; ++pair) {
                        const Angles two = *reinterpret_cast<const Angles*>(&angles[first_element(pair, across)]);
$TURN_PAIR
                    }
                }
";

pub(super) const TURN_PAIR: &str = r"
                        turn_pairs(key[pair], key[pair + STEPS], over[pair], over[pair + STEPS], two);
";

pub(super) const TURN_SCALED_PAIR: &str = r"
                        const float low_scale = shuffle(probe[set][side].scale, down * 4 + scale_of(pair));
                        const float high_scale = shuffle(probe[set][side].scale, down * 4 + scale_of(pair + STEPS));
                        turn_pairs(key[pair], key[pair + STEPS], over[pair], over[pair + STEPS], two, low_scale, high_scale);
";

pub(super) const TURNS: &str = r"
            for (int turn = 0; turn < TURNS; ++turn) {
                sync_block();  // the rows before have been multiplied
$LOAD
                sync_block();
$PRODUCTS
            }
";

/// The largest of all rows, of each product that [`EVERY_SIDE`] or [`SIDE_AT_HAND`] goes through.
pub(super) const BEST_ROW: &str = r"
$SIDES
                    score[set][$SIDE] = max(score[set][$SIDE], shuffle_xor(score[set][$SIDE], 8));
                    score[set][$SIDE] = max(score[set][$SIDE], shuffle_xor(score[set][$SIDE], 16));
                    // Column `down` is in the lanes across it.
                    score[set][$SIDE] = shuffle(score[set][$SIDE], down % 2 * 4 + down / 2);
                }
";

/// Where both sides have been multiplied.
pub(super) const EVERY_SIDE: &str = r"
            for (int set = 0; set < SETS; ++set)
                for (int side = 0; side < 2; ++side) {
";

/// Where one side has.
pub(super) const SIDE_AT_HAND: &str = r"
                for (int set = 0; set < SETS; ++set) {
";

/// The copies of the queries, and the probes of both sides.
pub(super) const PRODUCTS: &str = r"
            for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                for (int copy = 0; copy < COPIES; ++copy) {
$PRODUCT
                }
";

/// The copies of the queries, and the probes of a side at a time.
pub(super) const PRODUCTS_OF_SIDES: &str = r"
            Probe probe[SETS][SIDES];
#pragma unroll
            for (int copy = 0; copy < COPIES; ++copy) {
$PROBES
$TILES
$BEST_ROW
            }
";

pub(super) const TILES: &str = r"
                for (int tile = 0; tile < TILES; ++tile) {
$PRODUCT
                }
";

pub(super) const PRODUCT: &str = r"
                    float product[SIDES][SETS][4] = {};
$MULTIPLY
                    // A lane has the columns 2 * across and 2 * across + 1 of two rows, and goes on with one of them.
                    const int row = $ROW;
                    const bool one = $ONE, other = $OTHER;
                    for (int side = 0; side < SIDES; ++side)
                        for (int set = 0; set < SETS; ++set) {
                            const float(&of)[4] = product[side][set];
                            const float even = max(one ? of[0] : LOWEST, other ? of[2] : LOWEST);
                            const float odd = max(one ? of[1] : LOWEST, other ? of[3] : LOWEST);
                            const float mine = max(down % 2 == 0 ? even : odd, shuffle_xor(down % 2 == 0 ? odd : even, 4));
                            score[set][copy + side] = max(score[set][copy + side], mine);
                        }
";

pub(super) const MULTIPLY: &str = r"
                    for (int part = 0; part < 2; ++part)
                        for (int at = 0; at < STEPS; ++at) {
                            const Four factor = *reinterpret_cast<const Four*>(
                                &own_factors[$PART * PART + (tile * STEPS + at) * STEP]);
                            for (int side = 0; side < SIDES; ++side)
                                for (int set = 0; set < SETS; ++set) {
                                    const unsigned* const key = &probe[set][$SIDE].at[2 * at];
                                    mma_16x8x16<Factor>(product[side][set], factor.at, {key[0], key[1]});
$REST
                                }
                        }
";

pub(super) const MULTIPLY_REST: &str = r"
                                    const unsigned* const over = &rest[set][copy + side][2 * at];
                                    if (part == 0) mma_16x8x16<Factor>(product[side][set], factor.at, {over[0], over[1]});
";

/// The same of numbers with scales, whose sides are never taken in turn.
pub(super) const MULTIPLY_SCALED: &str = r"
                    for (int scale = 0; scale < SCALES; ++scale) {
                        float sum[SIDES][SETS][4] = {};
                        for (int at = scale * (STEPS / SCALES); at < (scale + 1) * (STEPS / SCALES); ++at)
                            for (int part = 0; part < 2; ++part) {
                                const Four factor = *reinterpret_cast<const Four*>(
                                    &own_factors[$PART * PART + (tile * STEPS + at) * STEP]);
                                for (int side = 0; side < SIDES; ++side)
                                    for (int set = 0; set < SETS; ++set) {
                                        const unsigned* const key = &probe[set][copy + side].at[2 * at];
                                        mma_16x8x16<Factor>(sum[side][set], factor.at, {key[0], key[1]});
                                    }
                            }
                        // The lanes of a column have its scales.
                        for (int side = 0; side < SIDES; ++side)
                            for (int set = 0; set < SETS; ++set)
                                for (int e = 0; e < 2; ++e) {
                                    const float its = shuffle(probe[set][copy + side].scale, across * 8 + e * 4 + scale);
                                    for (int r = 0; r < 4; r += 2) product[side][set][r + e] += sum[side][set][r + e] * its;
                                }
                    }
";
