"""One self-contained HTML page with augmented views of some images.

Values flow in, a `ContactSheet`; the text of a page flows out, which loads nothing and runs
nothing. Equal values give equal bytes.
"""

from cvpipe.report.contact_sheet import ContactSheet
from cvpipe.report.page import render_page


def render_preview_page(title: str, sheet: ContactSheet) -> str:
    """Write the page.

    Args:
        title: Name of the folder of the images.
        sheet: What it shows.
    """
    return render_page("preview.html.j2", title=title, sheet=sheet)
