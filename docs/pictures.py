#!/usr/bin/env python3
"""Writes the pictures of the book to src/pictures.

A picture is rows of cells: one letter a cell, which says what it is; `|` leaves a gap, a space an empty place. What
stands in cells is listed besides, for the cells that bear something, from the left.
"""

from pathlib import Path
from xml.sax.saxutils import escape

# Letter: fill, colour of what stands in the cell, name in the legend.
KINDS = {
    "s": ("#4c78a8", "#ffffff", "sink"),
    "w": ("#3f8f86", "#ffffff", "window"),
    "k": ("#f0a030", "#33373d", "kept"),
    "c": ("#f6d9a8", "#33373d", "candidate"),
    "p": ("#d1495b", "#ffffff", "read"),
    "t": ("#f0a030", "#33373d", "taken"),
    "m": ("#8e6bbf", "#ffffff", "summary"),
    "v": ("#d9dee5", "#33373d", "product"),
    "q": ("#33373d", "#ffffff", "query"),
    "a": ("#7a828c", "#ffffff", "averaged"),
    "r": ("#d1495b", "#ffffff", "renewed"),
    "o": ("#f0a030", "#33373d", "reused"),
    "d": ("#4c78a8", "#ffffff", "attended"),
    ".": ("#e2e0d9", "#33373d", "not seen"),
}
LEFT, WIDTH, TOP, ROW, CELL, GAP, WIDEST = 200, 420, 18, 32, 18, 6, 44
INK, CARD = "#33373d", "#faf9f5"

PICTURES = {
    "query_block": [
        ("queries", "qqqq|qqqq|qqqq|qqqq"),
        ("keys kept for block 0", "kk..k.......k..."),
        ("keys kept for block 1", "k...kk.......k.."),
    ],
    "sink": [("keys of a query", "ssss........................wwww")],
    "window": [
        ("query at 20", "ssss.............wwww..........."),
        ("query at 31", "ssss........................wwww"),
    ],
    "stage": [
        ("stage 0 scores", "cccccccc|cccccccc|cccccccc|cccccccc"),
        ("stage 1 scores", "cccc|cccc|....|....|cccc|cccc|....|...."),
        ("attended to", "kkkk|....|....|....|....|kkkk|....|...."),
    ],
    "attend": [
        ("scored by the last stage", "ss|cc|..|cc|..|cc|cc|..|ww"),
        ("attended to", "ss|..|..|kk|..|kk|..|..|ww"),
    ],
    "keep": [
        ("every key", "cccccccc|cccccccc|cccccccc|cccccccc"),
        ("keep 16 enters stage 1", "cccccccc|........|........|cccccccc"),
        ("attend keep 8", "kkkk|....|....|....|....|....|....|kkkk"),
    ],
    "chunk": [
        ("chunk 16", "cccccccccccccccc|cccccccccccccccc"),
        ("chunk 8", "cccccccc|cccccccc|cccccccc|cccccccc"),
        ("chunk 4", "cccc|cccc|cccc|cccc|cccc|cccc|cccc|cccc"),
    ],
    "query_stride": [
        ("queries of a block", "qqqq|qqqq|qqqq|qqqq"),
        ("rows, query_stride 4", "a   |a   |a   |a   "),
        ("rows, query_stride 1", "qqqq|qqqq|qqqq|qqqq"),
    ],
    "refresh": [
        ("decoding step", "                ", "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"),
        ("stage 0, refresh 8", "rooooooorooooooo"),
        ("stage 1, refresh 4", "rooorooorooorooo"),
        ("stage 2, refresh 2", "rorororororororo"),
        ("staggered, first layer", "rooooooorooooooo"),
        ("staggered, layer between", "rooorooooooorooo"),
    ],
    "representative": [
        ("keys of a chunk", "vvvv", "1,2 0,1 5,0 1,1"),
        ("products with q = 1,1", "vvvv", "3 1 5 2"),
        ("halving: 5", ".ppp", "1 5 2"),
        ("mean: 2.75", "mm  ", "1.75 1"),
        ("min_max: 7", "mm|mm", "0 0 5 2"),
        ("exact: 5", "pppp", "3 1 5 2"),
    ],
    "probe": [("middle", ".p..|.p.."), ("first", "p...|p...")],
    "chunk_score": [
        ("halving 1", "..p.|..t.", "3 5"),
        ("halving 2", "....|.p.t", "2 4"),
        ("running_max: 5", "....|..tt", "5 4"),
        ("last: 4", "....|...t", "4"),
    ],
    "descent": [
        ("each, head 0", "..t.|..p.", "4 3"),
        ("each, head 1", "..p.|..t.", "1 6"),
        ("kv_group, head 0", "..p.|..t.", "4 3"),
        ("kv_group, head 1", "..p.|..t.", "1 6"),
    ],
    "query_reduction": [
        ("row 0, chunks 0 to 3", "vvvv", "6 1 2 1"),
        ("row 1", "vvvv", "0 4 2 1"),
        ("row 2", "vvvv", "0 4 2 1"),
        ("max keeps chunk 0", "kvvv", "6 4 2 1"),
        ("mean keeps chunk 1", "vkvv", "2 3 2 1"),
    ],
    "scores": [
        ("row 0, chunks 0 to 3", "vvvv", "9 8 9 8"),
        ("row 1", "vvvv", "1 5 1 1"),
        ("raw keeps two", "kvkv", "9 8 9 8"),
        ("shares of row 0, %", "vvvv", "37 13 37 13"),
        ("shares of row 1, %", "vvvv", "2 95 2 2"),
        ("soft keeps two", "kkvv", "37 95 37 13"),
    ],
    "ranking": [
        ("all: every head", "kk......kk....kk"),
        ("each: head 0", "kk..kk....kk...."),
        ("each: head 1", "......kk..kkkk.."),
    ],
    "rope": [
        ("keys in the text", "ssss....kk......kk......kk..wwww"),
        ("where they stand", "                  ssss|kkkkkk|wwww"),
    ],
    "scan": [
        ("relative", "cc                  q", "0 1"),
        ("chunk_indexed", "cccccccc            q", "0 1 2 3 4 5 6 7"),
        ("infllm", "c                   q", "0"),
        ("extended", "          ccccccwwwwq"),
    ],
    "dense": [("keys of a query", "dddddddddddddddddddddddddddddddd")],
    "prefill": [
        ("reading, prefill { dense; }", "dddddddddddddddddddd"),
        ("generating", "sskkkkkkkk........ww"),
    ],
    "decode": [
        ("reading", "sskkkk............ww"),
        ("generating, keep 8", "sskkkkkkkk........ww"),
    ],
    "layers": [("layers 0 to 2", "sskkkkkkkkkkkkkkkkww"), ("layers from 3", "sskkkkkkkk........ww")],
}


def rectangle(x, y, width, height, fill, radius=2):
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" fill="{fill}"/>'


def text(x, y, words, anchor="start", fill=INK, size=14):
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}" font-size="{size}">{escape(words)}</text>'


def cells(y, keys, values):
    """One row. An empty place bears a value where there are as many values as places."""
    places, gaps = len(keys.replace("|", "")), keys.count("|")
    width, x = min(WIDEST, (WIDTH - GAP * gaps) / places), LEFT
    everywhere = len(values) == places
    for key in keys:
        if key == "|":
            x += GAP
            continue
        ink = INK
        if key in KINDS:
            fill, ink, _ = KINDS[key]
            yield rectangle(x, y, width - 1.5, CELL, fill)
        if values and (everywhere or key not in " ."):
            yield text(x + (width - 1.5) / 2, y + 13, values.pop(0), "middle", ink, 11)
        x += width


def picture(rows):
    """One SVG on a light card, so that it reads the same on a light and on a dark page."""
    used = [kind for kind in KINDS if any(kind in row[1] for row in rows)]
    height = TOP + ROW * len(rows) + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" width="640" height="{height}" '
        'font-family="sans-serif">',
        rectangle(0, 0, 640, height, CARD, 8),
    ]
    for index, (label, keys, *values) in enumerate(rows):
        y = TOP + ROW * index
        lines.append(text(LEFT - 14, y + 14, label, "end"))
        lines.extend(cells(y, keys, values[0].split() if values else []))
    x = LEFT
    for kind in used:
        fill, _, name = KINDS[kind]
        lines.append(rectangle(x, height - 27, 12, 12, fill))
        lines.append(text(x + 17, height - 16, name))
        x += 38 + 8 * len(name)
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    folder = Path(__file__).parent / "src" / "pictures"
    folder.mkdir(exist_ok=True)
    for word, rows in PICTURES.items():
        (folder / f"{word}.svg").write_text(picture(rows), encoding="utf-8")
