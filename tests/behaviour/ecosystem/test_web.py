"""Web frameworks and behaviour-driven tests, isolated: pytest-django, pytest-flask, pytest-bdd."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from helpers.plugins import load
from helpers.run import same

if TYPE_CHECKING:
    from helpers.run import Run

pytestmark = pytest.mark.needs("sandbox")

JOBS = (1, 2)

SETTINGS = """
    from pathlib import Path

    SECRET_KEY = "for tests"
    ALLOWED_HOSTS = ["*"]
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
    INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "notes"]
    ROOT_URLCONF = "notes.urls"
    STATIC_URL = "static/"
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path(__file__).with_name("notes.sqlite3"),
            "TEST": {"NAME": TEST_NAME},
        }
    }
"""

DJANGO = """
    from django.test import TestCase
    from django.urls import reverse
    from notes.models import Note

    @pytest.mark.django_db
    def test_creates():
        Note.objects.create(text="one")
        assert Note.objects.count() == 1

    @pytest.mark.django_db
    def test_starts_empty():
        assert Note.objects.count() == 0

    @pytest.mark.django_db(transaction=True)
    def test_commits():
        Note.objects.create(text="committed")
        assert Note.objects.get().text == "committed"

    def test_needs_the_mark():
        Note.objects.count()

    def test_fixture(db, django_assert_num_queries):
        with django_assert_num_queries(1):
            assert list(Note.objects.all()) == []

    @pytest.mark.django_db
    def test_client(client):
        Note.objects.create(text="shown")
        assert client.get(reverse("all")).json() == ["shown"]

    def test_admin(admin_user):
        assert admin_user.is_superuser

    def test_settings(settings):
        settings.SECRET_KEY = "changed"

    def test_mail(mailoutbox):
        from django.core import mail
        mail.send_mail("subject", "body", "a@example.org", ["b@example.org"])
        assert len(mailoutbox) == 1

    class TestNotes(TestCase):
        @classmethod
        def setUpTestData(cls):
            cls.note = Note.objects.create(text="of the class")

        def test_has_it(self):
            self.assertEqual(Note.objects.get(), self.note)

        def test_fails(self):
            self.assertContains(self.client.get("/"), "something else")

    @pytest.mark.django_db
    def test_live_server(live_server):
        from urllib.request import urlopen
        Note.objects.create(text="served")
        with urlopen(live_server.url) as answer:
            assert answer.read() == b'["served"]'
"""


def write_django(run: Run, *, test_name: str) -> None:
    """A project with one app, one model and one view."""
    run.write("settings.py", SETTINGS.replace("TEST_NAME", test_name))
    run.write("notes/__init__.py", "")
    run.write(
        "notes/models.py",
        """
        from django.db import models

        class Note(models.Model):
            text = models.CharField(max_length=100)
        """,
    )
    run.write(
        "notes/urls.py",
        """
        from django.http import JsonResponse
        from django.urls import path
        from notes.models import Note

        def all_notes(request):
            return JsonResponse([note.text for note in Note.objects.all()], safe=False)

        urlpatterns = [path("", all_notes, name="all")]
        """,
    )


@pytest.mark.parametrize(
    ("test_name", "jobs"),
    [("None", 1), ('Path("/tmp/test.sqlite3")', 2)],
    ids=["in memory", "in a file"],
)
def test_django(run: Run, test_name: str, jobs: int) -> None:
    """Database, transactions, clients, TestCase and the live server.

    A database in a file lies in /tmp here, so that each test has its own.
    """
    load(run, "django")
    write_django(run, test_name=test_name)
    run.tests(DJANGO)
    same(run, "--ds=settings", jobs=[jobs])


def test_django_database_of_a_snapshot(run: Run) -> None:
    """With a snapshot the database is made once, and each test starts with a copy of it.

    The live server is of session scope and a thread, which no fork can have: it is refused.
    """
    load(run, "django")
    write_django(run, test_name='Path("/tmp/test.sqlite3")')
    run.write(
        "conftest.py",
        """
        import pytest

        @pytest.fixture(scope="session")
        def django_db_setup(django_db_setup):
            with open("made.txt", "a") as stream:
                stream.write("x")
        """,
    )
    run.tests(DJANGO)
    plain = run("--ds=settings")
    (run.path / "made.txt").unlink()
    result = run.isolated("--ds=settings", "--ns-snapshot=session")
    assert result.verdicts == {**plain.verdicts, "test_live_server": "error"}, str(result)
    assert "NO SNAPSHOT" in result.of("test_live_server", "setup").text
    assert (run.path / "made.txt").read_text() == "x"


def test_flask(run: Run) -> None:
    """Clients, contexts, and the live server, which is a process of its own."""
    load(run, "flask")
    run.write(
        "conftest.py",
        """
        import flask
        import pytest

        seen = []

        def hello(name):
            seen.append(name)
            return {"hello": name, "seen": seen}

        @pytest.fixture
        def app():
            app = flask.Flask("app")
            app.add_url_rule("/<name>", "hello", hello)
            return app
        """,
    )
    run.tests("""
    from urllib.request import urlopen
    from flask import url_for

    @pytest.mark.parametrize("name", ["ann", "bob"])
    def test_client(client, name):
        assert client.get(f"/{name}").json["hello"] == name

    def test_context(config):
        assert url_for("hello", name="x").endswith("/x")

    def test_fails(client):
        assert client.get("/").status_code == 200

    @pytest.mark.usefixtures("live_server")
    class TestLive:
        def test_served(self):
            with urlopen(url_for("hello", name="live", _external=True)) as answer:
                assert b"live" in answer.read()
    """)
    same(run, "--live-server-port=0", jobs=JOBS)
    # What one test did to the application, no other one sees.
    run.tests("""
    @pytest.mark.parametrize("name", ["ann", "bob"])
    def test_alone(client, name):
        assert client.get(f"/{name}").json["seen"] == [name]
    """)
    run.isolated("--ns-jobs=2").expect(passed=2)


def test_bdd(run: Run) -> None:
    """Scenarios, outlines and failing steps, with the reporter that tells the steps."""
    load(run, "pytest-bdd")
    run.write(
        "cart.feature",
        """
        Feature: A cart
          Background:
            Given an empty cart

          Scenario: Adding
            When I add 2 apples
            Then there are 2 apples

          Scenario Outline: Adding twice
            When I add <first> apples
            And I add <second> apples
            Then there are <sum> apples

            Examples:
              | first | second | sum |
              | 1     | 2      | 3   |
              | 2     | 2      | 5   |
        """,
    )
    run.tests("""
    from pytest_bdd import given, parsers, scenarios, then, when

    scenarios("cart.feature")

    @given("an empty cart", target_fixture="cart")
    def cart():
        return []

    @when(parsers.parse("I add {count:d} apples"))
    def add(cart, count):
        cart += ["apple"] * count

    @then(parsers.parse("there are {count:d} apples"))
    def there_are(cart, count):
        assert len(cart) == count
    """)
    for options in ((), ("--gherkin-terminal-reporter", "-vv")):
        result = same(run, *options, jobs=JOBS)
        assert sorted(result.verdicts.values()) == ["failed", "passed", "passed"], str(result)
    steps = []
    for number, more in enumerate(((), ("--ns-isolate", "--ns-jobs=2"))):
        run(f"--cucumberjson=cucumber-{number}.json", *more)
        (feature,) = json.loads((run.path / f"cucumber-{number}.json").read_text("utf-8"))
        steps.append(
            [
                (scenario["name"], step["name"], step["result"]["status"])
                for scenario in feature["elements"]
                for step in scenario["steps"]
            ]
        )
    assert len(steps[0]) == 11
    assert steps[1] == steps[0]
