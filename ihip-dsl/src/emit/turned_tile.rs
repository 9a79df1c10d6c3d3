//! Prefill on tensor cores where keys are turned: they and queries are split into what the factors' type holds and the
//! rest, and so are weights. These are the texts that [`super::attend_tiles`] has in such layers alone.

pub(super) const TURNED_TILES: &str = r"
    Factor* const query_rests = query_tile + TILE_ROWS * HEAD_DIM;        // what rounding took from it
    Factor* const value_tile = query_rests + TILE_ROWS * HEAD_DIM;        // [TILE_KEYS][HEAD_DIM]
    Factor* const cached_tile = value_tile + TILE_KEYS * HEAD_DIM;        // keys as they were cached
    Factor* const key_tile = cached_tile + TILE_KEYS * HEAD_DIM;          // turned
    Factor* const key_rests = key_tile + TILE_KEYS * HEAD_DIM;            // what rounding took from them
";

pub(super) const TURN_QUERY: &str = r"
                rotate(x, y, rope_table[(tile_first + query - origin) * HALF + element]);
";

pub(super) const SPLIT_QUERY: &str = r"
            rests[0].at[e] = from_float<Factor>(x - to_float(pieces[0].at[e]));
            rests[1].at[e] = from_float<Factor>(y - to_float(pieces[1].at[e]));
";

pub(super) const STORE_QUERY_RESTS: &str = r"
        *reinterpret_cast<Piece*>(&query_rests[low]) = rests[0];
        *reinterpret_cast<Piece*>(&query_rests[high]) = rests[1];
";

pub(super) const TURNED_FIRST_COPY: &str = "    copy(cached_tile, keys, 0);\n";

pub(super) const TURNED_THERE: &str = r"
        copy_async_wait<0>();
        sync_block();  // the tile's keys are there, and the tile before has been read
        copy(value_tile, values, tile_index);
";

pub(super) const ANGLES: &str = r"
        float2 angles[TURNS][8];
        for (int turn = 0; turn < TURNS; ++turn) {
            const int item = min(thread + turn * THREADS, TILE_KEYS * PIECES / 2 - 1);
            const int position = slot_positions[slots + item / (PIECES / 2)], element = item % (PIECES / 2) * 8;
            for (int e = 0; e < 8; ++e) angles[turn][e] = rope_table[position * HALF + element + e];
        }
";

pub(super) const BLENDED_ANGLES: &str = r"
        float2 angles[TURNS][8];
        for (int turn = 0; turn < TURNS; ++turn) {
            const int item = min(thread + turn * THREADS, TILE_KEYS * PIECES / 2 - 1);
            const int slot = slots + item / (PIECES / 2), element = item % (PIECES / 2) * 8;
            for (int e = 0; e < 8; ++e)
                angles[turn][e] = blend(rope_table[slot_positions[slot] * HALF + element + e],
                                        rope_table[slot_extended[slot] * HALF + element + e]);
        }
";

pub(super) const TURN_KEYS: &str = r"
        // Keys are turned to their positions, and split.
        for (int turn = 0; turn < TURNS; ++turn) {
            const int item = thread + turn * THREADS, key = item / (PIECES / 2), piece = item % (PIECES / 2);
            if (item >= TILE_KEYS * PIECES / 2) break;
            const int low = piece_at(key, piece), high = piece_at(key, piece + PIECES / 2);
            Piece turned[2], rests[2];
$LOAD_PIECES
            for (int e = 0; e < 8; ++e) {
                float x = $LOW, y = $HIGH;
                rotate(x, y, angles[turn][e]);
                turned[0].at[e] = from_float<Factor>(x);
                turned[1].at[e] = from_float<Factor>(y);
                rests[0].at[e] = from_float<Factor>(x - to_float(turned[0].at[e]));
                rests[1].at[e] = from_float<Factor>(y - to_float(turned[1].at[e]));
            }
            *reinterpret_cast<Piece*>(&key_tile[low]) = turned[0];
            *reinterpret_cast<Piece*>(&key_tile[high]) = turned[1];
            *reinterpret_cast<Piece*>(&key_rests[low]) = rests[0];
            *reinterpret_cast<Piece*>(&key_rests[high]) = rests[1];
        }
        sync_block();
$COPY_NEXT_KEYS
";

pub(super) const LOAD_PIECES: &str = r"
            turned[0] = *reinterpret_cast<const Piece*>(&cached_tile[low]);
            turned[1] = *reinterpret_cast<const Piece*>(&cached_tile[high]);
";

pub(super) const LOAD_QUERY_REST: &str = r"
                load_matrix_x4(query_rest[band], &query_rests[at]);
";

pub(super) const REST_PRODUCTS: &str = r"
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Factor>(score[band][2 * n], query_rest[band], {key[0], key[1]});
                    mma_16x8x16<Factor>(score[band][2 * n + 1], query_rest[band], {key[2], key[3]});
                }
                load_matrix_x4(key, &key_rests[at]);
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Factor>(score[band][2 * n], query[band], {key[0], key[1]});
                    mma_16x8x16<Factor>(score[band][2 * n + 1], query[band], {key[2], key[3]});
                }
";

pub(super) const VALUES_THERE: &str = r"
        copy_async_wait<1>();
        sync_block();  // the tile's values are there
";

pub(super) const KEEP_WEIGHT_REST: &str = r"
                    for (int e = 0; e < 2; ++e) exact[e] -= to_float(from_float<Factor>(exact[e]));
                    weight_rest[band][part] = pack<Factor>(exact[0], exact[1]);
";

pub(super) const REST_OUTPUT: &str = r"
                for (int band = 0; band < BANDS; ++band) {
                    mma_16x8x16<Factor>(output[band][2 * i], weight_rest[band], {value[0], value[1]});
                    mma_16x8x16<Factor>(output[band][2 * i + 1], weight_rest[band], {value[2], value[3]});
                }
";
