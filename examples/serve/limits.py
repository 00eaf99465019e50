"""Bodies are read whole before they are looked at: of bounded size, and within bounded time."""

import asyncio

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class LimitBodies:
    """Answers 413 to what is larger than `most` bytes, and 408 to what has not come after `seconds`."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body, more = b"", True
        try:
            async with asyncio.timeout(self.seconds):
                while more and len(body) <= self.most:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return await Response(status_code=400)(scope, receive, send)
                    body, more = body + message.get("body", b""), message.get("more_body", False)
        except TimeoutError:
            refusal = JSONResponse(
                {"detail": f"the body must come within {self.seconds} s"}, 408, {"Connection": "close"}
            )
            return await refusal(scope, receive, send)
        if len(body) > self.most:
            refusal = JSONResponse(
                {"detail": f"the body must have at most {self.most} bytes"}, 413, {"Connection": "close"}
            )
            return await refusal(scope, receive, send)
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return await self.app(scope, replay, send)
