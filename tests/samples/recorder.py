"""A plugin that writes each phase and each warning to a file, as lines of JSON."""

import json
import os


class Recorder:
    def __init__(self):
        self.pid = os.getpid()

    def write(self, **record):
        if os.getpid() == self.pid:
            with open(os.environ["NS_RECORDER"], "a", encoding="utf-8") as stream:
                stream.write(json.dumps(record, default=repr) + "\n")

    def pytest_runtest_logreport(self, report):
        self.write(
            kind="phase",
            nodeid=str(report.nodeid),
            when=report.when,
            outcome=report.outcome,
            xfail=getattr(report, "wasxfail", None),
            text=report.longreprtext,
            sections=[list(section) for section in report.sections],
            properties=[list(pair) for pair in report.user_properties],
            subtest=type(report).__name__ == "SubtestReport",
        )

    def pytest_warning_recorded(self, warning_message, when, nodeid, location):
        self.write(
            kind="warning",
            nodeid=nodeid,
            when=when,
            category=warning_message.category.__name__,
            text=str(warning_message.message),
            filename=os.path.basename(warning_message.filename),
            line=warning_message.lineno,
        )


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(), "ns-recorder-instance")
