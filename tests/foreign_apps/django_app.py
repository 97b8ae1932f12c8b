"""A Django project in a single file, without a database: it knows nothing of natsweb."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.core.asgi import get_asgi_application
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseNotModified,
    JsonResponse,
    StreamingHttpResponse,
)
from django.shortcuts import redirect, render
from django.urls import include, path, re_path, reverse
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

__all__ = ["app", "create"]

HERE = Path(__file__).parent

FORM = (
    '<form method="post" action="{% url \'guestbook\' %}">{% csrf_token %}{{ form }}</form>'
    "{% for message in messages %}<p>{{ message.level_tag }}: {{ message }}</p>{% endfor %}"
)

#: What happens in the application; there is one for the whole process, as there is of Django's settings.
happened: list[str] = []

if not settings.configured:
    settings.configure(
        DEBUG=False,
        SECRET_KEY="parchment" * 6,
        ALLOWED_HOSTS=["shop.test", "127.0.0.1"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["django.contrib.messages"],
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.middleware.gzip.GZipMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.http.ConditionalGetMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [("django.template.loaders.locmem.Loader", {"form.html": FORM})],
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.messages.context_processors.messages",
                    ],
                },
            }
        ],
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        MESSAGE_STORAGE="django.contrib.messages.storage.cookie.CookieStorage",
        LOGGING_CONFIG=None,
        USE_TZ=True,
    )


class Entry(forms.Form):
    """What a guest writes."""

    name = forms.CharField(max_length=20)
    pages = forms.IntegerField(min_value=1, required=False)


def index(request: HttpRequest) -> HttpResponse:
    """Answer from a thread."""
    return HttpResponse("library", headers={"X-Shelf": "A"})


async def where(request: HttpRequest) -> HttpResponse:
    """Say what Django makes of the address."""
    return JsonResponse(
        {
            "path": request.path,
            "path_info": request.path_info,
            "full": request.get_full_path(),
            "host": request.get_host(),
            "absolute": request.build_absolute_uri("x"),
            "reverse": reverse("book", kwargs={"number": 7}),
            "nested": reverse("attic:box", args=["a/b"]),
            "script": request.META["SCRIPT_NAME"],
            "remote": request.META["REMOTE_ADDR"],
            "scheme": request.scheme,
            "query": request.GET.dict(),
            "lists": request.GET.getlist("q"),
            "user": request.headers.get("X-Reader"),
            "length": request.META.get("CONTENT_LENGTH"),
        }
    )


async def book(request: HttpRequest, number: int) -> HttpResponse:
    """Have a number in the path."""
    if number == 0:
        raise Http404("no such book")
    return HttpResponse(f"book {number}")


def box(request: HttpRequest, name: str) -> HttpResponse:
    """Have the rest of the path."""
    return HttpResponse(f"box {name}")


class Desk(View):
    """A view with a method for each HTTP method, all of them async."""

    async def get(self, request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0)
        return HttpResponse("desk")

    async def put(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.body[::-1], content_type="application/octet-stream")


def go(request: HttpRequest) -> HttpResponse:
    """Redirect to a view by its name."""
    return redirect("book", number=3)


def guestbook(request: HttpRequest) -> HttpResponse:
    """The form of the documentation: shown, checked, thanked for."""
    form = Entry(request.POST or None)
    if request.method == "POST" and form.is_valid():
        messages.success(request, f"thanks, {form.cleaned_data['name']}")
        return redirect(reverse("guestbook"))
    return render(request, "form.html", {"form": form}, status=422 if request.method == "POST" else 200)


def visits(request: HttpRequest) -> HttpResponse:
    """Count in a session."""
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"visits": request.session["visits"]})


async def async_visits(request: HttpRequest) -> HttpResponse:
    """Count in a session, async."""
    count = await request.session.aget("visits", 0) + 1
    await request.session.aset("visits", count)
    return JsonResponse({"visits": count})


@csrf_exempt
@require_http_methods(["POST"])
def upload(request: HttpRequest) -> HttpResponse:
    """Take files, those over 2.5 MB through a temporary file."""
    found: dict[str, Any] = request.POST.dict()
    for name, file in request.FILES.items():
        total = size = 0
        for chunk in file.chunks():
            size, total = size + len(chunk), zlib.crc32(chunk, total)
        found[name] = [file.name, type(file).__name__, size, total]
    return JsonResponse(found)


@csrf_exempt
async def raw(request: HttpRequest) -> HttpResponse:
    """Take a body as it is."""
    data = request.read()
    return JsonResponse(
        {
            "size": len(data),
            "sum": zlib.crc32(data),
            "type": request.content_type,
            "length": request.META.get("CONTENT_LENGTH"),
        }
    )


async def rows(request: HttpRequest) -> StreamingHttpResponse:
    """Answer bit by bit."""

    async def lines() -> AsyncIterator[str]:
        for row in range(int(request.GET.get("count", 5))):
            await asyncio.sleep(0)
            yield f"row {row}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


async def flood(request: HttpRequest) -> StreamingHttpResponse:
    """Answer for ever, faster than anybody takes it, and say so when it is over."""

    async def drops() -> AsyncIterator[bytes]:
        try:
            while True:
                happened.append("drop")
                yield b"drop" * 16_000
                await asyncio.sleep(0)
        finally:
            happened.append("tap closed")

    return StreamingHttpResponse(drops(), content_type="application/octet-stream", headers={"Content-Encoding": "none"})


async def measured(request: HttpRequest) -> StreamingHttpResponse:
    """Answer bit by bit, with the length known, and go on for a moment after the last bit."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"12345"
        await asyncio.sleep(0.01)
        happened.append("swept up")

    return StreamingHttpResponse(pieces(), headers={"Content-Length": "5"})


async def patient(request: HttpRequest) -> HttpResponse:
    """Wait for what never comes; say so when cancelled."""
    happened.append("waiting")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        happened.append("view cancelled")
        raise
    return HttpResponse("never")


@csrf_exempt
async def swallow(request: HttpRequest) -> HttpResponse:
    """Be called only once the whole body is there."""
    happened.append("called")
    return HttpResponse(str(len(request.body)))


def source(request: HttpRequest) -> FileResponse:
    """Answer with a file."""
    return FileResponse((HERE / "django_app.py").open("rb"), as_attachment=True, filename="quelle ü.py")


def page(request: HttpRequest) -> HttpResponse:
    """Answer with enough text to compress."""
    return HttpResponse("<p>a long page</p>" * 100)


def stale(request: HttpRequest) -> HttpResponse:
    """Answer without a body."""
    return HttpResponseNotModified(headers={"ETag": '"old"'})


def cookies(request: HttpRequest) -> HttpResponse:
    """Set two cookies, and delete one."""
    response = HttpResponse(request.COOKIES.get("mark", "none"))
    response.set_cookie("mark", "ribbon", max_age=60, samesite="Lax")
    response.set_signed_cookie("seal", "wax")
    response.delete_cookie("dust")
    return response


async def boom(request: HttpRequest) -> HttpResponse:
    """Fail."""
    raise ZeroDivisionError("a shelf of nothing")


urlpatterns = [
    path("", index),
    path("where", where),
    path("books/<int:number>", book, name="book"),
    path("attic/", include(([re_path(r"^box/(?P<name>.*)$", box, name="box")], "attic"))),
    path("desk", csrf_exempt(Desk.as_view())),
    path("folder/", index),
    path("go", go),
    path("guestbook", guestbook, name="guestbook"),
    path("visits", visits),
    path("async-visits", async_visits),
    path("upload", upload),
    path("raw", raw),
    path("rows", rows),
    path("flood", flood),
    path("measured", measured),
    path("patient", patient),
    path("swallow", swallow),
    path("source", source),
    path("page", page),
    path("stale", stale),
    path("cookies", cookies),
    path("boom", boom),
]


def create(log: list[str] | None = None) -> Any:
    """Return a new ASGI application of the one project; what happens goes to `happened`."""
    return get_asgi_application()


app = create()
