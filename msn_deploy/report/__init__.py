"""Numbers to HTML, SVG, Markdown and text: one stylesheet and one set of plots for bench, study and suite."""
