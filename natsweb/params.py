"""Markers that say where a handler's parameter comes from: `Annotated[int, Query(ge=1)]`, `Annotated[Db, Depends(db)]`.

They are values and do nothing: `binding` reads them off the annotation when a handler is declared, with the
constraints that pydantic knows. A marker stands in `Annotated`, never as a default value. Also the two types
that markers need: `UploadFile`, and `Partial[Model]` for PATCH. Knows no requests.
"""

import difflib
from collections.abc import Callable, Iterator
from copy import copy
from functools import lru_cache
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    RootModel,
    ValidationError,
    create_model,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticUndefined, core_schema
from starlette.datastructures import UploadFile as StarletteUploadFile
from typing_extensions import TypedDict, Unpack

from natsweb.errors import DeclarationError, FieldError, InvalidInput

__all__ = [
    "Body",
    "Constraints",
    "Cookie",
    "Depends",
    "File",
    "Form",
    "Header",
    "Marker",
    "Partial",
    "Path",
    "Query",
    "Scope",
    "UploadFile",
    "field_errors",
]

M = TypeVar("M", bound=BaseModel)

#: How long a dependency lives: until the handler has returned, until the reply has gone, or as long as the service.
Scope = Literal["handler", "request", "app"]


class Constraints(TypedDict, total=False):
    """What every marker takes besides its own settings: pydantic's constraints, and words for the API document."""

    title: str
    description: str
    examples: list[Any]
    deprecated: bool
    gt: float
    ge: float
    lt: float
    le: float
    multiple_of: float
    min_length: int
    max_length: int
    pattern: str
    strict: bool


class Marker:
    """A marker for one source of input: `alias` is the name on the wire, `include_in_schema` shows it in documents.

    Raises `TypeError` for a constraint that does not exist.
    """

    source: ClassVar[str] = ""
    __slots__ = ("alias", "constraints", "deprecated", "field", "include_in_schema")

    def __init__(
        self, *, alias: str | None = None, include_in_schema: bool = True, **constraints: Unpack[Constraints]
    ) -> None:
        _check_names(type(self).__name__, constraints)
        self.alias = alias
        self.include_in_schema = include_in_schema
        self.constraints = constraints
        self.deprecated = constraints.get("deprecated", False)
        # pydantic knows `deprecated` for fields of models only.
        known: dict[str, Any] = {name: one for name, one in constraints.items() if name != "deprecated"}
        self.field: FieldInfo = Field(**known)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()" if self.alias is None else f"{type(self).__name__}(alias={self.alias!r})"


_OWN = ("alias", "include_in_schema", "csv", "embed", "media_type")
_NEAR = {"gte": "ge", "lte": "le", "regex": "pattern", "convert_underscores": "alias", "example": "examples"}


def _check_names(marker: str, constraints: Any) -> None:
    for name in constraints:
        if name not in Constraints.__annotations__:
            known = [*Constraints.__annotations__, *_OWN]
            close = [_NEAR[name]] if name in _NEAR else difflib.get_close_matches(name.lower(), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "; a default goes after the parameter: = 7"
            raise TypeError(f"{marker}() takes no {name!r}{hint}")


class Path(Marker):
    """A capture of the path, with constraints: `id: Annotated[int, Path(ge=1)]`. Its name is the parameter's."""

    source = "path"
    __slots__ = ()

    def __init__(self, *, include_in_schema: bool = True, **constraints: Unpack[Constraints]) -> None:
        if "alias" in constraints:
            raise TypeError("Path() takes no 'alias'; call the capture as the parameter")
        super().__init__(include_in_schema=include_in_schema, **constraints)


class Query(Marker):
    """A query parameter, or with a model all of its fields: `page: Annotated[Page, Query()]`.

    `csv` takes `?id=1,2,3` for a list, besides `?id=1&id=2`.
    """

    source = "query"
    __slots__ = ("csv",)

    def __init__(
        self,
        *,
        csv: bool = False,
        alias: str | None = None,
        include_in_schema: bool = True,
        **constraints: Unpack[Constraints],
    ) -> None:
        super().__init__(alias=alias, include_in_schema=include_in_schema, **constraints)
        self.csv = csv


class Header(Marker):
    """A header field; `user_agent` is `user-agent`, unless `alias` says otherwise."""

    source = "header"
    __slots__ = ()


class Cookie(Marker):
    """A cookie of the request."""

    source = "cookie"
    __slots__ = ()


class Body(Marker):
    """The body: JSON for any type, as it is for `bytes`, and for `str` with a `media_type` of `text/...`.

    `embed` takes the parameter from a key of a JSON object, so that several parameters share a body.
    `media_type` is the one content type that is taken; any other is 415.
    """

    source = "body"
    __slots__ = ("embed", "media_type")

    def __init__(
        self,
        *,
        embed: bool = False,
        media_type: str | None = None,
        alias: str | None = None,
        include_in_schema: bool = True,
        **constraints: Unpack[Constraints],
    ) -> None:
        super().__init__(alias=alias, include_in_schema=include_in_schema, **constraints)
        self.embed = embed
        self.media_type = None if media_type is None else media_type.partition(";")[0].strip().lower()


class Form(Marker):
    """A field of a form (urlencoded or multipart), or with a model all of its fields."""

    source = "form"
    __slots__ = ()


class File(Form):
    """A file of a multipart form, for `bytes`; a parameter of type `UploadFile` needs no marker."""

    __slots__ = ()


def OWN_TYPE() -> None:
    """Stand for the annotated class itself, which `Depends()` calls."""


class Depends:
    """A dependency: `db: Annotated[Db, Depends(get_db)]` is what `get_db` returns or yields.

    `get_db` is a function, a class, a generator whose part after `yield` cleans up, or any of these in async.
    Without it, the annotated class is called. Its parameters are bound like a handler's. `scope` is how long it
    lives: `"handler"` until the handler has returned, `"request"` until the reply has gone, `"app"` as long as the
    service. `inline` calls a plain `def` that never blocks without a thread. Within a request a dependency is
    called once, unless `shared` is false.
    """

    #: Whether it is called before all others: it settles who calls.
    first: ClassVar[bool] = False
    __slots__ = ("dependency", "inline", "scope", "shared")

    def __init__(
        self,
        dependency: Callable[..., Any] = OWN_TYPE,
        *,
        scope: Scope = "request",
        inline: bool = False,
        shared: bool = True,
    ) -> None:
        if not callable(dependency):
            raise DeclarationError(
                f"Depends takes a function or a class, not {dependency!r}",
                fix="write Depends(get_db), without calling it; for a security scheme Auth(scheme)",
            )
        if scope not in get_args(Scope):
            raise DeclarationError(
                f"{scope!r} is no scope of a dependency", fix=f"use one of {', '.join(map(repr, get_args(Scope)))}"
            )
        self.dependency = dependency
        self.scope: Scope = scope
        self.inline = inline
        self.shared = shared

    def __repr__(self) -> str:
        return f"Depends({getattr(self.dependency, '__name__', self.dependency)})"

    def resolve(self, annotation: Any) -> Callable[..., Any] | None:
        """Return what is called for a parameter of this type: the dependency, else the type itself if it is a class."""
        if self.dependency is not OWN_TYPE:
            return self.dependency
        return annotation if isinstance(annotation, type) and annotation is not Any else None


class UploadFile(StarletteUploadFile):
    """A file of a multipart form: `filename`, `content_type`, `size` in bytes; `await file.read()` gives its bytes.

    It is starlette's, in memory up to 1 MiB and in a temporary file above; it is closed when the reply has gone.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(lambda value, _: cls._check(value))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "format": "binary"}

    @classmethod
    def _check(cls, value: Any) -> "UploadFile":
        if not isinstance(value, UploadFile):
            raise ValueError("send it as a file, in a multipart form")
        return value


def field_errors(loc: list[str | int], error: ValidationError) -> list[FieldError]:
    """Return what pydantic refuses below `loc`, without sending the input back."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [{"loc": [*loc, *one["loc"]], "msg": one["msg"], "type": one["type"]} for one in details]


# ── PATCH ────────────────────────────────────────────────────────────────────────────────────────


class Partial(Generic[M]):
    """A JSON body with some fields of a model, for PATCH: `async def change(id: int, patch: Partial[Order]) -> Order`.

    Each field that was sent is validated as the model does; all others are simply not there. `patch.changes` holds
    what was sent, by field name, and `patch.apply(order)` gives the changed order. A nested model is replaced whole.
    """

    __slots__ = ("_model", "_sent")

    def __init__(self, model: type[M], sent: BaseModel) -> None:
        self._model = model
        self._sent = sent

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that were sent, validated."""
        values = self._sent.__dict__ | (self._sent.__pydantic_extra__ or {})
        return {name: value for name, value in values.items() if name in self}

    def apply(self, value: M) -> M:
        """Return `value` with the changes in it. What was sent has been validated; all else stays as it is.

        The model's validators of the whole see the result first. Raises `InvalidInput` (422) if they refuse it.
        """
        try:
            now = {name: getattr(value, name) for name in self._model.model_fields}
            whole_model(self._model).__pydantic_validator__.validate_python(now | self.changes, by_name=True)
        except ValidationError as error:
            raise InvalidInput("the request does not fit what is there", errors=field_errors(["body"], error)) from None
        return value.model_copy(update=self.changes)

    def __contains__(self, name: object) -> bool:
        return name in self._sent.model_fields_set

    def __iter__(self) -> Iterator[str]:
        return iter(self.changes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partial) and self._model is other._model and self.changes == other.changes

    def __hash__(self) -> int:
        return hash((self._model, frozenset(self._sent.model_fields_set)))

    def __repr__(self) -> str:
        return f"Partial[{self._model.__name__}]({self.changes!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        [model] = get_args(source) or [None]
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or issubclass(model, RootModel):
            raise DeclarationError("Partial stands for some fields of a pydantic model", fix="write Partial[Order]")
        made = core_schema.no_info_after_validator_function(
            lambda sent: Partial(model, sent), handler(partial_model(model))
        )
        passed = core_schema.no_info_wrap_validator_function(
            lambda value, validate: value if isinstance(value, Partial) else validate(value), made
        )
        return core_schema.json_or_python_schema(
            made,
            passed,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.changes),
        )


def _nothing() -> None:
    """The default of a field that was not sent; a factory, so that API documents show none."""


@lru_cache(4096)
def partial_model(model: type[BaseModel]) -> type[BaseModel]:
    """Return `OrderPatch` for `Order`: the same fields and field validators, none of them required.

    Validators of the model as a whole are left out: they see a whole model when the changes are applied.
    """
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        optional = copy(info)
        optional.default, optional.default_factory, optional.validate_default = PydanticUndefined, _nothing, False
        fields[name] = (info.annotation, optional)
    patch = create_model(f"{model.__name__}Patch", __base__=model, __module__=model.__module__, **fields)
    patch.__pydantic_decorators__.model_validators.clear()
    patch.model_post_init = _nothing_after  # type: ignore[method-assign]
    patch.__pydantic_post_init__ = None
    patch.model_rebuild(force=True)
    return patch


@lru_cache(4096)
def whole_model(model: type[BaseModel]) -> type[BaseModel]:
    """Return a model that takes any value in each field, and has the validators of `model` as a whole only."""
    fields: dict[str, Any] = dict.fromkeys(model.model_fields, (Any, ...))
    whole = create_model(f"{model.__name__}Whole", __base__=model, __module__=model.__module__, **fields)
    whole.__pydantic_decorators__.field_validators.clear()
    whole.model_rebuild(force=True)
    return whole


def _nothing_after(self: BaseModel, context: Any, /) -> None:
    """Do nothing after validation."""
