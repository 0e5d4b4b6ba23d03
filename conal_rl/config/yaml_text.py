"""YAML as people mean it: numbers and switches by the core schema of YAML 1.2, and nothing else.

YAML 1.1, which PyYAML reads, takes 1:30 for 90, 010 for 8, and 1e6 and `no` for something else than
1.2 does.
"""

from __future__ import annotations

from typing import Any

import yaml

from conal_rl.config.values import NUMBER, scalar, shown

LONGEST = 2**17
"""Characters of the longest file that is read. PyYAML takes seconds for it."""
MOST_VALUES = 100_000
"""Values in a file, with those that aliases repeat."""
_PLAIN, _CORE = "plain", "tag:yaml.org,2002:"
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "null": (type(None),),
}


def load_yaml(text: str) -> Any:
    """Return what one YAML document holds.

    Plain values are read as `values.scalar` does. A key is always text. `<<` merges mappings.

    Raises:
        yaml.YAMLError: the text is not YAML, is too long or too deep, gives a key twice, or has a
            tag of a different schema or one that does not fit its value.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"{len(text):,} characters, and at most {LONGEST:,} are read")
    try:
        node = yaml.compose(text, _Loader)
        return None if node is None else _Values().of(node)
    except RecursionError:
        raise yaml.YAMLError("values too deep within values, or within themselves") from None


def dump_yaml(data: Any) -> str:
    """Return YAML from which `load_yaml` reads `data`."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.BaseLoader):
    """Marks plain scalars, whose value their text decides."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


class _Dumper(yaml.SafeDumper):
    """Quotes text that only YAML 1.2 takes for a number, next to what YAML 1.1 takes for one."""


_Dumper.add_implicit_resolver(f"{_CORE}float", NUMBER, list("-+.0123456789"))


class _Values:
    """Makes the values of nodes, and counts them, because aliases can repeat a node for ever."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, node: yaml.Node) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES:,} values, with those of its aliases")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
            return [self.of(one) for one in node.value]
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        raise _wrong_tag(node)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (_PLAIN, f"{_CORE}str"):
                raise yaml.YAMLError(f"a key that is not text {key.start_mark}")
            if key.value in own:
                raise yaml.YAMLError(
                    f"{shown(key.value)} is given twice in the mapping {node.start_mark}"
                )
            made = self.of(value)
            if key.tag == _PLAIN and key.value == "<<":
                for one in made if isinstance(made, list) else [made]:
                    if not isinstance(one, dict):
                        raise yaml.YAMLError(f"<< without a mapping {value.start_mark}")
                    merged = one | merged
            else:
                own[key.value] = made
        return merged | own


def _scalar(node: yaml.ScalarNode) -> Any:
    if node.tag == _PLAIN:
        return scalar(node.value)
    kinds = _KINDS.get(node.tag.removeprefix(_CORE), ())
    value = node.value if kinds == (str,) else scalar(node.value)
    if type(value) not in kinds:
        raise _wrong_tag(node)
    return value


def _wrong_tag(node: yaml.Node) -> yaml.YAMLError:
    tag = node.tag.replace(_CORE, "!!")
    return yaml.YAMLError(f"the tag {shown(tag)} does not fit its value {node.start_mark}")
