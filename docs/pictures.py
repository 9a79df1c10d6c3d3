#!/usr/bin/env python3
"""Writes the pictures of the book's word pages to src/pictures: rows of keys, one letter a key, `|` between chunks."""

from pathlib import Path
from xml.sax.saxutils import escape

KINDS = {
    "s": ("#4c78a8", "sink"),
    "w": ("#5fa8a0", "window"),
    "k": ("#f0a030", "kept"),
    "c": ("#f6d9a8", "candidate"),
    "p": ("#d1495b", "read"),
    "m": ("#8e6bbf", "summary"),
    "q": ("#33373d", "query"),
    "a": ("#7a828c", "averaged"),
    "r": ("#d1495b", "renewed"),
    "o": ("#f0a030", "reused"),
    ".": ("#e2e0d9", "not seen"),
}
LEFT, WIDTH, TOP, ROW, CELL = 190, 430, 18, 34, 18

PICTURES = {
    "query_block": [("queries", "qqqq|qqqq|qqqq|qqqq"), ("list of block 0", "kk..k.......k..."), ("list of block 1", "k...kk.......k..")],
    "sink": [("keys of a query", "ssss........................wwww")],
    "window": [("query at 20", "ssss.............wwww..........."), ("query at 31", "ssss........................wwww")],
    "stage": [("every key", "cccccccc|cccccccc|cccccccc|cccccccc"), ("after stage 0", "cccccccc|........|cccccccc|........"), ("after stage 1", "cc..cc..|........|..cc....|........")],
    "attend": [("ranked blocks", "sscc.cc...cc.....cc...cc....wwww"), ("attended", "sskk......kk..........kk....wwww")],
    "keep": [("keep 16 enter", "cccccccc|........|........|cccccccc"), ("keep 8 enter", "cccc....|........|........|..cccc..")],
    "chunk": [("chunk 16", "cccccccccccccccc|cccccccccccccccc"), ("chunk 8", "cccccccc|cccccccc|cccccccc|cccccccc"), ("chunk 4", "cccc|cccc|cccc|cccc|cccc|cccc|cccc|cccc")],
    "query_stride": [("queries", "qqqq|qqqq|qqqq|qqqq"), ("rows, stride 4", "a   |a   |a   |a   "), ("rows, stride 1", "qqqq|qqqq|qqqq|qqqq")],
    "refresh": [("stage 0, refresh 8", "rooooooorooooooo"), ("stage 1, refresh 4", "rooorooorooorooo"), ("stage 2, refresh 2", "rorororororororo")],
    "representative": [("halving", "....p.......p..."), ("mean", "mmmmmmmmmmmmmmmm"), ("min_max", "mmmmmmmmmmmmmmmm"), ("exact", "pppppppppppppppp")],
    "probe": [("probe middle", "....p...|....p..."), ("probe first", "p.......|p.......")],
    "chunk_score": [("halving 1", "....p...|....p..."), ("halving 2", "........|..p...p."), ("running_max takes", "........|....p.p."), ("last takes", "........|......p.")],
    "descent": [("each, head 0", "..p...p.|........"), ("each, head 1", "........|..p...p."), ("kv_group, both", "........|..p...p.")],
    "ranking": [("all: every head", "kk......kk....kk"), ("each: head 0", "kk..kk....kk...."), ("each: head 1", "......kk..kkkk..")],
    "query_reduction": [("scores of 4 rows", "..p.|p...|.p..|p..."), ("max: one number", "p..."), ("mean: one number", "a...")],
    "scores": [("row 0, large", "pppkpppp"), ("row 1, small", ".....k.."), ("soft: both count", "...k.k..")],
    "rope": [("cached keys", "ssss....kk......kk......kk..wwww"), ("packed in attention", "                  ssss|kkkkkk|wwww")],
    "scan": [("relative: left, right", "p                      q"), ("chunk_indexed", "cccccccc               q"), ("infllm: all at 0", "c                      q")],
    "layers": [("layers 0 to 2", "sskkkkkkkkkkkkkkkkww"), ("layers from 3", "sskkkkkkkk........ww")],
}


def rectangle(x, y, width, height, fill, radius=2):
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" fill="{fill}"/>'


def text(x, y, words, anchor="start"):
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def picture(rows):
    """One SVG on a light card, so that it reads the same on a light and on a dark page."""
    used = [kind for kind in KINDS if any(kind in keys for _, keys in rows)]
    height = TOP + ROW * len(rows) + 34
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" width="640" height="{height}" '
        'font-family="sans-serif" font-size="14" fill="#33373d">',
        rectangle(0, 0, 640, height, "#faf9f5", 8),
    ]
    for index, (label, keys) in enumerate(rows):
        y = TOP + ROW * index
        lines.append(text(LEFT - 14, y + 14, label, "end"))
        cells, gaps = len(keys.replace("|", "")), keys.count("|")
        width, x = min(27, (WIDTH - 6 * gaps) / cells), LEFT
        for key in keys:
            if key == "|":
                x += 6
                continue
            if key in KINDS:
                lines.append(rectangle(x, y, width - 1.5, CELL, KINDS[key][0]))
            x += width
    x = LEFT
    for kind in used:
        fill, name = KINDS[kind]
        lines.append(rectangle(x, height - 27, 12, 12, fill))
        lines.append(text(x + 17, height - 16, name))
        x += 36 + 8 * len(name)
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    folder = Path(__file__).parent / "src" / "pictures"
    folder.mkdir(exist_ok=True)
    for word, rows in PICTURES.items():
        (folder / f"{word}.svg").write_text(picture(rows), encoding="utf-8")
