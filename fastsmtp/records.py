"""Frozen records: what we use of the standard library's dataclasses, at a thirtieth of their cost to import.

dataclasses takes 14 ms to import (it brings inspect) and 0.7 ms for each class, since it compiles six
functions for it; `fastsmtp smtpd` starts once a connection and has 35 ms in all.  Here a class costs
0.05 ms, and its __init__ is compiled when some instances have been made.

    from fastsmtp.records import dataclass, field, replace

The names and their meaning are those of dataclasses, and the functions of dataclasses (fields, replace,
asdict, is_dataclass) work on these classes as well.  What we don't use isn't here: ordering, InitVar,
__post_init__, a class without slots.

Rank 0: imports nothing but what Python has loaded already.
"""

from __future__ import annotations

from operator import attrgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace

    __all__ = ["MISSING", "dataclass", "field", "fields", "is_dataclass", "replace"]
else:

    class _Missing:
        __slots__ = ()

        def __repr__(self):
            return "MISSING"

    MISSING = _Missing()
    _set = object.__setattr__
    # Instances of a class until its __init__ is compiled, which takes 0.2 ms.
    _FEW = 8

    class Field:
        """One field: name, type (as text), default, default_factory, metadata, as dataclasses.Field has them."""

        __slots__ = ("default", "default_factory", "metadata", "name", "type")

        def __init__(self, default, default_factory, metadata):
            self.name = ""
            self.type = ""
            self.default = default
            self.default_factory = default_factory
            self.metadata = metadata

    def field(*, default=MISSING, default_factory=MISSING, metadata=None):
        """A field with more to say than its default."""
        return Field(default, default_factory, metadata or {})

    def dataclass(*, frozen=False, slots=True, kw_only=False):
        """The decorator; slots is there for type checkers, records always have them."""
        if not slots:
            raise TypeError("a record has slots")
        return lambda cls: _record(cls, is_frozen=frozen, is_kw_only=kw_only)

    def _record(cls, *, is_frozen, is_kw_only):
        namespace = dict(cls.__dict__)
        found = {}
        for base in cls.__mro__[:0:-1]:
            found.update(base.__dict__.get("__record_fields__", ()))
        inherited = set(found)
        for name, hint in namespace.get("__annotations__", {}).items():
            default = namespace.pop(name, MISSING)
            one = default if type(default) is Field else Field(default, MISSING, {})
            one.name = name
            one.type = hint
            found[name] = one
        names = tuple(found)
        namespace.pop("__dict__", None)
        namespace.pop("__weakref__", None)
        namespace["__slots__"] = tuple(name for name in names if name not in inherited)
        namespace["__record_fields__"] = found
        namespace["__record_is_kw_only__"] = is_kw_only
        namespace["__dataclass_fields__"] = _StandardFields()
        namespace["__match_args__"] = () if is_kw_only else names
        values = _values_of(names)
        namespace.setdefault("__eq__", _equality(values))
        namespace.setdefault("__repr__", _representation(names))
        namespace["__getstate__"] = lambda self: [getattr(self, name) for name in names]
        namespace["__setstate__"] = _restore(names)
        if is_frozen:
            if "__hash__" not in cls.__dict__ or cls.__dict__["__hash__"] is None:
                namespace["__hash__"] = lambda self: hash(values(self))
            namespace["__setattr__"] = _refuse
            namespace["__delattr__"] = _refuse
        else:
            namespace.setdefault("__hash__", None)
        made = type(cls)(cls.__name__, cls.__bases__, namespace)

        made_so_far = 0

        def begin(self, *arguments, **named):
            nonlocal made_so_far
            made_so_far += 1
            if made_so_far > _FEW:
                made.__init__ = _make_init(made, found, is_kw_only)
                made.__init__(self, *arguments, **named)
            else:
                _fill(self, found, arguments, named, is_kw_only)

        if "__init__" not in namespace:
            made.__init__ = begin
        return made

    def _fill(self, found, arguments, named, is_kw_only):
        """What the compiled __init__ does, for the first few instances: most classes have no more in a short life."""
        if arguments and (is_kw_only or len(arguments) > len(found)):
            raise TypeError(f"{self.__class__.__qualname__}.__init__() takes fewer positional arguments")
        values = dict(zip(found, arguments))  # noqa: B905 - fewer arguments than fields
        for name, value in named.items():
            if name in values or name not in found:
                raise TypeError(f"{self.__class__.__qualname__}.__init__(): unexpected argument {name!r}")
            values[name] = value
        for name, one in found.items():
            if name in values:
                value = values[name]
            elif one.default is not MISSING:
                value = one.default
            elif one.default_factory is not MISSING:
                value = one.default_factory()
            else:
                raise TypeError(f"{self.__class__.__qualname__}.__init__() misses {name!r}")
            _set(self, name, value)

    def _values_of(names):
        if len(names) > 1:
            return attrgetter(*names)
        if names:
            one = attrgetter(names[0])
            return lambda self: (one(self),)
        return lambda self: ()

    def _equality(values):
        def equals(self, other):
            if other.__class__ is self.__class__:
                return values(self) == values(other)
            return NotImplemented

        return equals

    def _representation(names):
        def show(self):
            shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            return f"{self.__class__.__qualname__}({shown})"

        return show

    def _restore(names):
        def restore(self, state):
            for name, value in zip(names, state, strict=True):
                _set(self, name, value)

        return restore

    def _refuse(self, name, *_):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def _make_init(cls, found, is_kw_only):
        """The compiled __init__: each slot's own setter, which a frozen class's __setattr__ doesn't stop."""
        scope = {"_MISSING": MISSING}
        parameters = ["self", *(["*"] if is_kw_only and found else [])]
        lines = []
        for name, one in found.items():
            scope[f"_set_{name}"] = _slot_of(cls, name).__set__
            value = name
            if one.default is not MISSING:
                scope[f"_default_{name}"] = one.default
                parameters.append(f"{name}=_default_{name}")
            elif one.default_factory is not MISSING:
                scope[f"_make_{name}"] = one.default_factory
                parameters.append(f"{name}=_MISSING")
                value = f"_make_{name}() if {name} is _MISSING else {name}"
            else:
                parameters.append(name)
            lines.append(f"  _set_{name}(self, {value})")
        source = f"def __init__({', '.join(parameters)}):\n" + "\n".join(lines or ["  pass"])
        exec(source, scope)  # noqa: S102 - made of a class's own field names
        init = scope["__init__"]
        init.__qualname__ = f"{cls.__qualname__}.__init__"
        return init

    def _slot_of(cls, name):
        return next(base.__dict__[name] for base in cls.__mro__ if name in base.__dict__)

    class _StandardFields:
        """What the functions of dataclasses ask a class for, made when one of them does."""

        __slots__ = ()

        def __get__(self, instance, owner):
            import dataclasses

            def standard(one):
                if one.default_factory is not MISSING:
                    return dataclasses.field(default_factory=one.default_factory, metadata=one.metadata)
                default = dataclasses.MISSING if one.default is MISSING else one.default
                return dataclasses.field(default=default, metadata=one.metadata)

            found = owner.__record_fields__
            made = dataclasses.make_dataclass(
                owner.__name__,
                [(name, one.type, standard(one)) for name, one in found.items()],
                kw_only=owner.__record_is_kw_only__,
            )
            owner.__dataclass_fields__ = made.__dataclass_fields__
            return owner.__dataclass_fields__

    def fields(record):
        """The fields of a record or of its class, in order."""
        return tuple(record.__record_fields__.values())

    def is_dataclass(thing):
        """Whether it is a record, or the class of one."""
        return hasattr(thing, "__record_fields__")

    def replace(record, /, **changes):
        """A record of the same class with these fields changed."""
        for name in record.__record_fields__:
            if name not in changes:
                changes[name] = getattr(record, name)
        return record.__class__(**changes)
