"""Plots as SVG: a panel for each workload with a bar for each builder and setting, and the span of its runs."""
import html
import os

import report
import workloads

COLOURS = {"kiln": "#c2410c", "buildkit": "#1d4ed8", "buildah": "#047857", "kaniko": "#7c3aed"}
WIDTH, LABEL, VALUE, BAR, GAP, HEAD = 760, 170, 90, 18, 5, 44
FONT = 'font-family="system-ui, sans-serif" font-size="13"'
MIB = 1 << 20
# File, title, figure, what divides it, unit.
PLOTS = [("wall", "Time of build and push", "wall", 1, "s"), ("cpu", "Processor time of the builder with its RUN commands", "cpu", 1, "s"),
         ("memory", "Peak resident memory of the builder's processes", "peak_builder", MIB, "MiB")]


def number(value):
    """Three digits that say something."""
    return "%.2f" % value if value < 10 else "%.1f" % value if value < 100 else "%.0f" % value


def panel(top, name, what, rows, figure, divisor, unit):
    """Lines of SVG, and where the panel ends. Bars begin at 0, so their lengths are in the ratio of the figures."""
    span = figure + "_min" in rows[0]
    longest = max(each[figure + "_max" if span else figure] for each in rows) or 1
    place = lambda value: LABEL + (WIDTH - LABEL - VALUE) * value / longest
    lines = ['<text x="10" y="%d" font-weight="bold">%s</text><text x="60" y="%d" fill="#555">%s</text>' %
             (top + 16, name, top + 16, html.escape(what))]
    y = top + 26
    for each in rows:
        middle = y + BAR / 2
        lines.append('<text x="%d" y="%.1f" text-anchor="end">%s</text>' % (LABEL - 8, middle + 5, html.escape(report.label(each["builder"], each["setting"]))))
        lines.append('<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"%s/>' %
                     (LABEL, y, max(1, place(each[figure]) - LABEL), BAR, COLOURS.get(each["builder"], "#555"),
                      ' fill-opacity="0.6"' if each["setting"] else ""))
        end = place(each[figure])
        if span and each["runs"] > 1:
            least, most = place(each[figure + "_min"]), place(each[figure + "_max"])
            lines.append('<path d="M%.1f %.1fH%.1fM%.1f %.1fv8M%.1f %.1fv8" stroke="#111" fill="none"/>' %
                         (least, middle, most, least, middle - 4, most, middle - 4))
            end = max(end, most)
        lines.append('<text x="%.1f" y="%.1f">%s %s</text>' % (end + 6, middle + 5, number(each[figure] / divisor), unit))
        y += BAR + GAP
    return lines, y + 14


def draw(table, title, figure, divisor, unit, scale):
    """The whole plot."""
    what = {each.name: each.what for each in workloads.ALL}
    lines, y = [], HEAD
    for name, rows in table.items():
        rows = [each for each in rows if figure in each]
        if rows:
            more, y = panel(y, name, what[name], rows, figure, divisor, unit)
            lines += more
    note = "" if scale == 1 else " (at scale %g: to try the bench, no figures)" % scale
    head = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" %s>' % (WIDTH, y, WIDTH, y, FONT),
            '<rect width="100%" height="100%" fill="white"/>',
            '<text x="10" y="26" font-size="17" font-weight="bold">%s%s</text>' % (html.escape(title), html.escape(note))]
    return "\n".join(head + lines + ["</svg>", ""])


def write(content, folder):
    """Writes all plots; `content` is what report.write gives."""
    os.makedirs(folder, exist_ok=True)
    for name, title, figure, divisor, unit in PLOTS:
        with open(os.path.join(folder, name + ".svg"), "w", encoding="utf-8") as file:
            file.write(draw(content["medians"], title, figure, divisor, unit, content["scale"]))
