"""Helpers that take translated settings out of a config; what remains was not translated."""

from collections.abc import Iterator


def unshared(value):
    """Copy a config so that no two places share an object, because settings are taken out of each place."""
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(unshared(item) for item in value)
    return value


def leaves(value, path: str) -> Iterator[tuple[str, object]]:
    """Yield path and value of everything that is left in a config."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f'{path}.{key}' if path else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list)) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f'{path}[{index}]')
    else:
        yield path, value


def shortened(value) -> str:
    """Return the value as source, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def take(old: dict, *names: str) -> dict:
    """Remove and return the arguments that keep their name and value in 3.x."""
    return {name: old.pop(name) for name in names if name in old}


def take_if(old: dict, name: str, *known) -> bool:
    """Remove an argument if its value needs no translation; return whether it is gone."""
    if name in old and old[name] in known:
        del old[name]
        return True
    return name not in old


def holds(config, value: dict | list | tuple) -> bool:
    """Return whether a config contains a value: as it is, as part of a dict, or as the items of a list."""
    def matches(node) -> bool:
        if isinstance(value, dict) and isinstance(node, dict):
            return value.items() <= node.items()
        return value == node

    nodes = config.values() if isinstance(config, dict) else config if isinstance(config, (list, tuple)) else ()
    if matches(config) or any(holds(node, value) for node in nodes):
        return True
    return isinstance(value, list) and all(isinstance(item, dict) and holds(config, item) for item in value)
