"""One evaluation: questions asked, predictions kept, scores, summary, a page with the worst replies."""
