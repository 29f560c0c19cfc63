"""`genrecal serve`: a build behind an endpoint in the manner of OpenAI's chat completions."""
