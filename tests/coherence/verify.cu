// Four neighbours of a row.
struct alignas(16) Quad {
    float at[4];
};

// Every bit of the result depends on all.
inline unsigned mixed(unsigned bits) {
    bits = (bits ^ bits >> 16) * 0x7feb352du;
    bits = (bits ^ bits >> 15) * 0x846ca68bu;
    return bits ^ bits >> 16;
}

// Elements from `element` on of the row with this name.
inline Quad due(unsigned name, int element) {
    const unsigned bits = mixed(name + static_cast<unsigned>(element));
    Quad quad;
    for (int i = 0; i < 4; ++i) quad.at[i] = static_cast<float>(static_cast<int>((bits >> 8 * i & 255u) % 15u) - 7);
    if (element % 32 == 0) quad.at[0] = 7.0f;
    return quad;
}

// Region 0 has the keys, 1 the values, 2 the keys that are probed first; a row of blocks of threads goes through each, beginning with
// `region`. One thread a row.
KERNEL(THREADS) ihip_coherence_verify(
    const unsigned* page_table, const Cached* keys, const Cached* values, const Cached* probes, int request, int layer,
    int region, int first, int last, unsigned* found) {
    const int item = blockIdx.x * THREADS + threadIdx.x, number = item / KV_HEADS, head = item % KV_HEADS;
    const int looked = region + blockIdx.y;
    const Cached* const from = looked == 0 ? keys : looked == 1 ? values : probes;
    int token = first + number, place = number;
    if (looked == 2) {
        // Chunk by chunk, and in each halving by halving: the middle of each half.
        const int within = number % CHUNK_PROBES;
        int halving = 0;
        while (within >= (4 << halving) - 2) ++halving;
        const int half = CHUNK >> (halving + 1), nth = within - ((2 << halving) - 2);
        token = SINK + number / CHUNK_PROBES * CHUNK + nth * half + half / 2;
    }
    if (token < first || token >= last) return;
    if (looked < 2) place = static_cast<int>(page_table[token / PAGE]) * PAGE + token % PAGE;
    const Cached* const page = from + (place / PAGE * KV_HEADS + head) * PAGE_ELEMENTS;
    const unsigned of_request = token << 8 | layer << 5 | looked % 2 << 4 | head;
    const unsigned name = mixed(mixed(static_cast<unsigned>(request)) ^ of_request);
    bool is_wrong = false;
    for (int element = 0; element < HEAD_DIM; element += 4) {
        const Quad has = held(page, place % PAGE * HEAD_DIM + element), wants = due(name, element);
        for (int i = 0; i < 4; ++i) is_wrong |= has.at[i] != wants.at[i];
    }
    atomic_add(&found[0], 1u);
    if (is_wrong) atomic_add(&found[1], 1u);
}
