"""A headless Chromium, driven through its DevTools protocol."""

import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0",
)  # fmt: skip
SECONDS = 90


def find_chromium():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


class Tab:
    """One page, and every address that it has asked for."""

    def __init__(self, connection):
        self._connection = connection
        self._numbers = itertools.count(1)
        self.addresses = []
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv())
            if answer.get("method") == "Network.requestWillBeSent":
                self.addresses.append(answer["params"]["request"]["url"])
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression, seconds=SECONDS):
        """The expression's value, once it is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.2)
        raise TimeoutError(f"{expression}: {self.evaluate('document.body.innerText')}")

    def upload(self, selector, path):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


@contextmanager
def open_tab(address, folder):
    """A browser with an empty profile in a folder, showing a page."""
    import websocket  # noqa: PLC0415 - a test without it is skipped

    command = [find_chromium(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            port_file = folder / "DevToolsActivePort"
            deadline = time.monotonic() + SECONDS
            while not (port_file.is_file() and port_file.read_text().count("\n")):
                assert time.monotonic() < deadline and browser.poll() is None
                time.sleep(0.1)
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as listed:
                (page,) = [tab for tab in json.load(listed) if tab["type"] == "page"]
            connection = websocket.create_connection(
                page["webSocketDebuggerUrl"], timeout=SECONDS, suppress_origin=True
            )
            tab = Tab(connection)
            tab.call("Page.navigate", url=address)
            yield tab
            connection.close()
        finally:
            browser.terminate()
