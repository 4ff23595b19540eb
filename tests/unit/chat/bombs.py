"""Templates that want too much: each must end in an error, soon and small.

Run as a program, it renders them all in one process of little memory and prints, as JSON, what each
ended in and the CPU seconds it took.
"""

from __future__ import annotations

import gc
import json
import resource
import time

import jinja2

from neuron.chat import sandbox

__all__ = ["BOMBS"]

MEMORY_BYTES = 200_000_000  # more than there is before
_RENDER_S = 0.25  # a quarter of what is allowed in service

DOUBLED = (
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
)
BIG = "{% set x = 'a' * 4000000 %}"
HOARD = (
    "{{% set n = namespace(l=[]) %}}{{% for i in range(999) %}}"
    "{{% set n.l = n.l + [{}] %}}{{% endfor %}}"
)

BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "a loop over a filter": "{% for a in range(99999) %}{% set x = range(99999) | list | length %}"
    "{% endfor %}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "wide recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "repetition": "{{ 'a' * 10 ** 10 }}",
    "list repetition": "{% set x = [0] * 10 ** 10 %}",
    "doubling by +": "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by a block": "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
    "{% set t %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = t %}{% endfor %}",
    "a sum of many big texts": BIG + "{{ " + "x + " * 900 + "x }}",
    "sums in one list": BIG + "{{ [" + "x + 'b'," * 900 + "] | length }}",
    "a sum of lists": "{% set x = range(99999) | list %}{{ " + "x + " * 900 + "x }}",
    "doubling a list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "much constant text": "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "much text in a block": "{% set t %}{% for i in range(99999) %}"
    + "x" * 10_000
    + "{% endfor %}{% endset %}",
    "powers": "{{ 9 ** 60 ** 60 ** 60 }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(width=10 ** 10) }}",
    "a format width": "{{ '%9999999999d' % 1 }}",
    "a format filter": "{{ '%9999999999d' | format(1) }}",
    "a format method": "{{ '{:>9999999999}'.format(1) }}",
    "an indirect width": "{{ '{:>{}}'.format(1, 10 ** 10) }}",
    "replacing": "{% set x = 'a' * 99999 %}{{ x.replace('a', x) }}",
    "a replace filter": "{% set x = 'a' * 99999 %}{{ x | replace('a', x) }}",
    "joining": "{% set x = 'a' * 99999 %}{{ x.join(range(99999) | list) }}",
    "a join filter": "{% set x = 'a' * 99999 %}{{ range(99999) | join(x) }}",
    "an indent": "{{ ('a\n' * 9999) | indent(10 ** 9) }}",
    "tojson's indent": "{{ [1] | tojson(indent=10 ** 9) }}",
    "batches": "{{ [1] | batch(10 ** 9, 'x') | list }}",
    "slices": "{{ [1] | slice(10 ** 9) | list }}",
    "a huge range": "{{ range(10 ** 9) | list }}",
    "made-up text": "{{ lipsum(n=10 ** 9) }}",
    "a date": "{{ strftime_now('%99999999Y') }}",
    "a huge template": "x" * 3_000_000,
    # values that hold others twice: small in memory, huge in print
    "lists in lists": DOUBLED + "{{ n.x }}",
    "lists in lists as JSON": DOUBLED + "{{ n.x | tojson }}",
    "lists in lists as text": DOUBLED + "{{ n.x | string | length }}",
    "lists in lists joined": DOUBLED + "{{ n.x | join }}",
    "lists in lists added to text": DOUBLED + "{{ 'a' ~ n.x }}",
    "lists in lists formatted": DOUBLED + "{{ '%s' % (n.x,) }}",
    "lists in lists compared": DOUBLED + "{% set y = n.x %}" + DOUBLED + "{{ n.x == y }}",
    "lists in lists searched": DOUBLED + "{% set y = n.x %}" + DOUBLED + "{{ y in [n.x] }}",
    "lists in lists counted": DOUBLED + "{% set y = n.x %}" + DOUBLED + "{{ [y].count(n.x) }}",
    "lists in lists tested": DOUBLED + "{% set y = n.x %}" + DOUBLED + "{{ y is eq n.x }}",
    "lists in lists selected": DOUBLED
    + "{% set y = n.x %}"
    + DOUBLED
    + "{{ [y] | select('eq', n.x) | list }}",
    "tuples in tuples as a key": DOUBLED.replace("[n.x, n.x]", "(n.x, n.x)") + "{{ {n.x: 1} }}",
    "tuples in tuples looked up": DOUBLED.replace("[n.x, n.x]", "(n.x, n.x)") + "{{ {}[n.x] }}",
    "tuples in tuples searched for": DOUBLED.replace("[n.x, n.x]", "(n.x, n.x)")
    + "{{ n.x in {} }}",
    "tuples in tuples got": DOUBLED.replace("[n.x, n.x]", "(n.x, n.x)") + "{{ {}.get(n.x) }}",
    "dictionaries in dictionaries": DOUBLED.replace("[n.x, n.x]", "{'a': n.x, 'b': n.x}")
    + "{{ n.x }}",
    "made by dict": DOUBLED.replace("[n.x, n.x]", "dict(a=n.x, b=n.x)") + "{{ n.x.values() }}",
    "made by defaults": DOUBLED.replace("[n.x, n.x]", "[u, u] | map('default', n.x) | list")
    + "{{ n.x }}",
    # many big values at once
    "slices of text": BIG + HOARD.format("x[i:]"),
    "upper": BIG + HOARD.format("x | upper"),
    "methods": BIG + HOARD.format("x.upper()"),
    "slices in one list": BIG + "{{ [" + "x[1:]," * 900 + "] | length }}",
    "joined big texts": BIG + "{% set l = [x] * 1000 %}{{ ''.join(l) | length }}",
    "a join filter of big texts": BIG + "{% set l = [x] * 1000 %}{{ l | join | length }}",
    "split into letters": BIG + HOARD.format("x.split('a')"),
    "split into words": BIG.replace("'a'", "'a '") + HOARD.format("x.split()"),
    "lines": BIG.replace("'a'", "'a\n'") + HOARD.format("x.splitlines()"),
    "letters": BIG.replace("'a'", "'🙂'") + "{{ x | list | length }}",
    "sorted letters": BIG.replace("'a'", "'🙂'") + "{{ x | sort | length }}",
    "many fields": BIG + "{{ ('%s' * 99999) % ((x,) * 99999) }}",
    "many named fields": BIG + "{{ ('%(a)s' * 99999) % {'a': x} }}",
    "many fields of format": BIG + "{{ ('{0}' * 99999).format(x) }}",
    "wide fields": "{{ ('%999d' * 99999) % ((1,) * 99999) }}",
    "bytes": BIG + "{{ (x.encode() * 10 ** 6) | length }}",
    "a wide text as indent": BIG + "{{ ('a\n' * 99999) | indent(x) }}",
    "wrapped words": BIG + "{{ x | wordwrap(1, wrapstring='b' * 999) }}",
    "escapes": BIG.replace("'a'", "'&'") + HOARD.format("x | escape"),
    "escaped JSON": BIG.replace("'a'", "'\x01'") + HOARD.format("x | tojson"),
    "a huge precision": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
    "growing numbers": "{% set n = namespace(x=3) %}{% for i in range(99) %}"
    "{% set n.x = n.x * n.x %}{% endfor %}",
    # time that no loop's body spends
    "loops without a body": "{% for i in range(99999) if i < 0 %}{% endfor %}" * 999,
    "sorting in one list": "{% set x = range(99999) | list %}"
    "{% set y = [" + "x | reverse | sort," * 900 + "] %}",
    "searching in one list": BIG + "{% set y = [" + "'b' in x," * 2000 + "] %}",
    "comparing in one list": BIG + "{% set z = x ~ '' %}{% set y = [" + "x == z," * 2000 + "] %}",
    "sums": "{% set x = range(99999) | list %}{{ [" + "x | sum," * 1500 + "] }}",
    "pipelines": "{{ " + "range(99999) | map('string') | list | length ~ " * 200 + "'' }}",
    "many expressions": "{{ a }}" * 9000,
    "many operators": "{{ a" + " < a" * 9000 + " }}",
    "deep nesting": "{{ " + "(" * 9000 + ")" * 9000 + " }}",
    "deep filters": "{{ a" + "|e" * 9000 + " }}",
    "deep blocks": "{% if a %}" * 900 + "{% endif %}" * 900,
}


def _main() -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    ended: dict[str, tuple[str, float]] = {}
    for name, text in BOMBS.items():
        started = time.process_time()
        try:
            template = sandbox.compile_template(text)
            sandbox.render(template, {}, time.monotonic() + _RENDER_S)
            kind = "nothing"
        except (jinja2.TemplateError, RecursionError, SyntaxError, OverflowError, TypeError):
            kind = "refused"
        except Exception as error:
            kind = repr(error)
        ended[name] = (kind, time.process_time() - started)
        gc.collect()  # tracebacks hold what the last one made
    print(json.dumps(ended))


if __name__ == "__main__":
    _main()
