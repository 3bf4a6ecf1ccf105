"""What a page of HTML says, and every address that it loads."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Text and every address that the page loads."""

    def __init__(self, html):
        super().__init__()
        self.text, self.addresses, self.scripts = "", [], 0
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag in ("script", "link", "iframe")
        self.addresses += [value for name, value in attributes if name in ("src", "srcset", "href", "data") and value]

    def handle_data(self, data):
        self.text += data
